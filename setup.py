"""Builds inn_kernels/_C.abi3.so, the CPU kernels and the launcher of GPU calls, where that is possible.

Where it is not, the package is installed without them.

The library uses PyTorch's stable ABI only, so one build serves every Python from 3.10 and every torch from 2.10 on.
(The launcher looks up more by name while it runs, and is off where that is missing.)
PyTorch's headers come from the torch that is already installed:

    pip install --no-build-isolation -e .

(With build isolation, pip builds in an environment without torch, and the package runs on its PyTorch reference.)
torch is deliberately not a build requirement: pip would fetch another one, gigabytes with CUDA, only for headers.

INN_KERNELS_NO_EXT=1    skips the library
INN_KERNELS_SANITIZE=1  builds it with the address and undefined-behaviour sanitizers
INN_KERNELS_LIBRARY=..  packs this library, built before, and compiles nothing
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# The kernels are compiled once for every instruction set and chosen when they run.
# (-Wno-maybe-uninitialized: the headers of gcc 12 warn about their own _mm512_undefined_ps.)
X86_FLAGS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512.cpp": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mfma",
        "-mf16c",
        "-Wno-maybe-uninitialized",
    ],
}


class BuildKernels(build_ext):
    """build_ext with compiler flags by file, a file on each core, and a failed build reported instead of raised."""

    def build_extension(self, ext):
        if built := os.environ.get("INN_KERNELS_LIBRARY"):
            self.copy_file(built, self.get_ext_fullpath(ext.name))
            return
        compile_all, compile_one = self.compiler.compile, self.compiler._compile

        def compile_together(*args, **kwargs):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                running = []

                def start_one(obj, src, suffix, cc_args, extra_postargs, pp_opts):
                    flags = X86_FLAGS.get(os.path.basename(src), []) if is_x86() else []
                    running.append(pool.submit(compile_one, obj, src, suffix, cc_args, extra_postargs + flags, pp_opts))

                self.compiler._compile = start_one
                objects = compile_all(*args, **kwargs)
            for file in running:
                file.result()
            return objects

        self.compiler.compile = compile_together
        try:
            super().build_extension(ext)
        except Exception as error:
            skipped(f"building them failed ({error})")
        finally:
            self.compiler.compile, self.compiler._compile = compile_all, compile_one


def is_x86():
    return platform.machine().lower() in ("x86_64", "amd64")


def skipped(reason):
    advice = "install a C++17 compiler and torch, then pip install --no-build-isolation --no-deps --force-reinstall ."
    print(f"inn_kernels: installing without the compiled CPU kernels: {reason}; {advice}", file=sys.stderr, flush=True)


def extensions():
    if os.environ.get("INN_KERNELS_NO_EXT") == "1":
        skipped("INN_KERNELS_NO_EXT=1")
        return []
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except Exception as error:
        skipped(f"torch cannot be imported at build time ({error})")
        return []
    flags = ["-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off"]
    link = []
    if os.environ.get("INN_KERNELS_SANITIZE") == "1":
        sanitize = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-O1"]  # compiles sooner
        flags = [*flags, *sanitize, "-g", "-fno-wrapv"]  # Python's -fwrapv would hide a signed overflow
        link += sanitize
    for path in include_paths():
        flags += ["-isystem", path]
    return [
        Extension(
            "inn_kernels._C",
            sources=sorted(
                glob("csrc/**/*.cpp", recursive=True), reverse=True
            ),  # the kernels, which take longest, do not come last
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("Py_LIMITED_API", "0x030a0000")],
            extra_compile_args=flags,
            extra_link_args=link,
            library_dirs=library_paths(),
            libraries=["torch_cpu", *(["dl"] if sys.platform == "linux" else [])],
            language="c++",
            py_limited_api=True,
            optional=True,
        )
    ]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
