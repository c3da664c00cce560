#!/usr/bin/env bash
# Build the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer and run the tests that reach them.
#   tests/sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=build/sanitize
INN_KERNELS_SANITIZE=1 "$python" setup.py --quiet build_ext --force --build-lib "$out" --build-temp "$out/objects"
export INN_KERNELS_LIBRARY
INN_KERNELS_LIBRARY=$(find "$PWD/$out" -name '_C*.so')
# Python itself keeps memory until it exits, so leaks are not looked for.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 INN_KERNELS_REQUIRE_CPP=1
LD_PRELOAD="$(${CC:-gcc} -print-file-name=libasan.so) $(${CC:-gcc} -print-file-name=libubsan.so)" \
    "$python" -m pytest -q -p no:cacheprovider tests/test_csrc.py tests/test_discretize.py tests/test_interpolate.py tests/test_golden.py
