#!/usr/bin/env bash
# Lays `oras` below a directory: Debian has it since the release after bookworm, and it runs here as it is. It comes from
# the mirror that this machine uses, through lists of its own; nothing of the system changes.
#
# Usage: ci/oras.sh DIRECTORY; the program is DIRECTORY/usr/bin/oras then.
set -euo pipefail
directory=$(mkdir -p "$1" && cd "$1" && pwd)
[ ! -x "$directory/usr/bin/oras" ] || exit 0

field() { awk -v field="$1:" '$1 == field { print $2; exit }' /etc/apt/sources.list.d/debian.sources; }
apt=$directory/apt
mkdir -p "$apt"/lists/partial "$apt"/archives/partial
echo "deb [signed-by=$(field Signed-By)] $(field URIs) trixie main" >"$apt/sources.list"
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
apt-get --quiet --quiet download oras
dpkg -x oras_*.deb "$directory"
"$directory/usr/bin/oras" version
