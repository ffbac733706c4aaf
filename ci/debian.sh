#!/usr/bin/env bash
# Lays a program of a later Debian than this one below a directory, where it runs as it is. It comes from the mirror that
# this machine uses, through lists of its own; nothing of the system changes.
#
# Usage: ci/debian.sh SUITE PACKAGE DIRECTORY; the program is DIRECTORY/usr/bin/PACKAGE then.
set -euo pipefail
suite=$1 package=$2
directory=$(mkdir -p "$3" && cd "$3" && pwd)
[ ! -x "$directory/usr/bin/$package" ] || exit 0

field() { awk -v field="$1:" '$1 == field { print $2; exit }' /etc/apt/sources.list.d/debian.sources; }
apt=$directory/apt/$suite
mkdir -p "$apt"/lists/partial "$apt"/archives/partial
echo "deb [signed-by=$(field Signed-By)] $(field URIs) $suite main" >"$apt/sources.list"
cat >"$apt/apt.conf" <<END
Dir::State::lists "$apt/lists";
Dir::Cache::archives "$apt/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "";
END
export APT_CONFIG=$apt/apt.conf
apt-get --quiet --quiet update
cd "$apt/archives"
apt-get --quiet --quiet download "$package"
dpkg -x "$package"_*.deb "$directory"
"$directory/usr/bin/$package" version
