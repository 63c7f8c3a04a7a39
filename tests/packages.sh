#!/usr/bin/env bash
# Checks of docker/systemd and docker/debian: the units by systemd-analyze, and by lintian the package that docker/debian/build.sh makes
# of the debug build, or of another BINARY. Then a container with systemd installs it, where this is root and may mount.
#
#   tests/packages.sh [BINARY]
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-${CARGO_TARGET_DIR:-$PWD/target}/debug/x0-msg-server}
work=$(mktemp -d)
trap 'umount --quiet "$work/layers/root" "$work/layers" 2>/dev/null; rm -rf "$work"' EXIT

echo "- the units are valid and hardened"
for unit in docker/systemd/*; do sed "s|/usr/bin/x0-msg-server|$binary|" "$unit" >"$work/${unit##*/}"; done
systemd-analyze verify --man=no "$work"/x0-msg-server.{service,socket}
# 0 is the least exposure and 100 the most. What is left is the network.
systemd-analyze security --offline=yes --threshold=15 "$work/x0-msg-server.service" >"$work/security" ||
    { cat "$work/security"; exit 1; }

echo "- the package is made, and lintian finds no error"
package=$(docker/debian/build.sh "$binary" --fast)
# The project names no address for mail.
LC_ALL=C lintian --allow-root --fail-on error --suppress-tags bogus-mail-host,bogus-mail-host-in-debian-changelog "$package" >"$work/lintian" ||
    { cat "$work/lintian"; exit 1; }

# The files of this machine, and above them a layer in memory.
mkdir "$work/layers"
layers() {
    mount -t tmpfs tmpfs "$work/layers" || return
    mkdir "$work"/layers/{root,upper,work}
    mount -t overlay -o "lowerdir=/,upperdir=$work/layers/upper,workdir=$work/layers/work" overlay "$work/layers/root"
}
if ! layers 2>/dev/null; then
    echo "not run: to install the package, this must be root and may mount"
    exit
fi
root=$work/layers/root
mkdir -p "$root/opt/packages"
cp "$package" "$root/opt/packages/x0-msg-server.deb"
cp tests/packages/installed.sh "$root/opt/packages"
rm -f "$root/etc/machine-id"
cat >"$root/etc/systemd/system/packages.service" <<'UNIT'
[Unit]
Requires=basic.target
After=basic.target
SuccessAction=exit
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/opt/packages/installed.sh /opt/packages/x0-msg-server.deb >/opt/packages/log 2>&1 && touch /opt/packages/passed'
TimeoutStartSec=120
UNIT
timeout 180 systemd-nspawn --quiet --register=no --keep-unit --directory="$root" --machine=packages --private-network --console=pipe --boot \
    -- systemd.unit=packages.service </dev/null >"$work/console" 2>&1 || true
[[ -f $root/opt/packages/log ]] || { cat "$work/console"; echo "the container did not start"; exit 1; }
cat "$root/opt/packages/log"
[[ -f $root/opt/packages/passed ]]
