#!/usr/bin/env bash
# Build the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer and run the tests that reach them.
#   tests/sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=$PWD/build/sanitize
INN_KERNELS_SANITIZE=1 "$python" setup.py --quiet build_ext --force --build-lib "$out" --build-temp "$out/objects"
INN_KERNELS_LIBRARY=$(find "$out" -name '_C*.so')
export INN_KERNELS_LIBRARY INN_KERNELS_REQUIRE_CPP=1
# Python itself keeps memory until it exits, so leaks are not looked for. libstdc++ goes along for its exceptions.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=2
export INN_KERNELS_FUZZ_CASES=${INN_KERNELS_FUZZ_CASES:-2000}
library() { "${CC:-gcc}" -print-file-name="$1"; }
LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so.6)" "$python" -m pytest -q -s \
    -p no:cacheprovider tests/kernels/test_csrc*.py tests/kernels/test_any_taps.py tests/kernels/test_operators.py \
    tests/test_replay.py tests/kernels/test_golden.py tests/functional/test_interpolate.py tests/functional/test_discretize.py
