#!/usr/bin/env bash
# Makes in DIR what the feature `mlx` needs on Linux, from the project's root:
#
#     ci/mlx/linux.sh target/mlx
#     cargo test --features mlx --config target/mlx/cargo.toml --test crosscheck
#
# MLX itself comes from its wheel; of its C interface, only what kiln calls is compiled. The build script of `mlx-sys`
# would fetch and build all of MLX, and links Apple's frameworks whatever the system is: the cargo configuration that is
# written here takes its place. The documentation of cargo calls that an override; that it may set OUT_DIR is not in
# it, and the first thing to look at when a newer cargo finds no `bindings.rs`.
#
# Needs python3 with venv, a C++20 compiler, and libfmt-dev where that has no <format> (GCC before 13). What is there
# already is left as it is.
set -euo pipefail
version=0.32.2 # of MLX: its libraries fit no other, and `src/quant/mlx` accepts no other
mkdir -p "${1:?usage: ci/mlx/linux.sh DIR}"
out=$(realpath "$1")
host=$(rustc -vV | sed -n 's/^host: //p')
here=$(dirname "$0")

# Everything that decides what is made, so that another of any of them makes it anew.
inputs=$(cat "$0" "$here/bindings.rs"; grep -A 3 '"mlx-sys"' Cargo.lock; rustc -vV; c++ --version; echo "$out")
if [ "$(cat "$out/made-from" 2>/dev/null)" = "$(sha256sum <<<"$inputs")" ]; then
    exit
fi
rm -rf "$out/made-from" "$out/wheel" "$out/c"

python3 -m venv "$out/wheel"
"$out/wheel/bin/pip" install --quiet --disable-pip-version-check --no-deps "mlx-cpu==$version"
mlx=$(echo "$out"/wheel/lib/python3*/site-packages/mlx)

mlx_c=$(cargo metadata --locked --format-version 1 --features mlx --filter-platform "$host" | python3 -c '
import json, os, sys
(sys_crate,) = [p for p in json.load(sys.stdin)["packages"] if p["name"] == "mlx-sys"]
print(os.path.join(os.path.dirname(sys_crate["manifest_path"]), "src", "mlx-c"))')
grep -q "GIT_TAG v$version)" "$mlx_c/CMakeLists.txt" || { echo "mlx-c in $mlx_c is not for MLX $version" >&2; exit 1; }

flags=(-std=c++20 -fPIC -I "$mlx_c" -I "$mlx/include")
if ! c++ -std=c++20 -fsyntax-only -x c++ - <<<'#include <format>' 2>/dev/null; then
    printf '%s\n' '#define FMT_HEADER_ONLY' '#include <fmt/format.h>' 'namespace std { using fmt::format; }' >"$out/format.h"
    flags+=(-include "$out/format.h")
fi
mkdir "$out/c"
printf '%s\n' array error ops stream string vector version |
    xargs -P "$(nproc)" -I{} c++ "${flags[@]}" -c "$mlx_c/mlx/c/{}.cpp" -o "$out/c/{}.o"
ar rcs "$out/c/libmlxc.a" "$out"/c/*.o

cp "$here/bindings.rs" "$out/bindings.rs"
cat >"$out/cargo.toml" <<TOML
[target.$host]
runner = ["env", "LD_LIBRARY_PATH=$mlx/lib"]

[target.$host.mlx]
rustc-link-search = ["native=$out/c", "native=$mlx/lib"]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = { OUT_DIR = "$out" }
TOML
sha256sum <<<"$inputs" >"$out/made-from"
