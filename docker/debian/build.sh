#!/usr/bin/env bash
# Makes the Debian package of a binary that is built: target/package/x0-msg-server_VERSION_ARCHITECTURE.deb.
#
#   cargo install --locked cargo-deb
#   docker/debian/build.sh [BINARY [ARGUMENT OF cargo-deb...]]
#
# BINARY is target/release/x0-msg-server if none is named. It runs on this machine: it prints the settings.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=${1:-target/release/x0-msg-server}
package=target/package
mkdir -p "$package/release"
cp "$binary" "$package/release/x0-msg-server"

# The package of that name which the x0 framework builds has version 1.0. The epoch makes all of ours newer.
version=1:$("$binary" --version | sed 's/^[^ ]* //; s/-/~/')-1

# All settings as comments, but for the directory of the store.
{
    cat <<'HEADER'
# Settings of x0-msg-server, for its service and for its commands. The comments show the defaults.
# `x0-msg-server config check` checks this file. `systemctl reload x0-msg-server` reads it again, and logs what needs a restart.
# Secrets belong into /etc/credstore: /etc/credstore/x0-msg-server.api-keys is `credential:api-keys` here.
HEADER
    env -i "$binary" config print --defaults |
        sed -e 1d -e 's/^\([a-z]\)/# \1/' -e 's|^# data-dir = .*|data-dir = "/var/lib/x0-msg-server"|'
} >"$package/x0-msg-server.toml"

cat >"$package/changelog" <<CHANGELOG
x0-msg-server ($version) stable; urgency=medium

  * What has changed is in CHANGELOG.md of the source.

 -- $(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)  $(LC_ALL=C date --utc --date="@${SOURCE_DATE_EPOCH:-$(date +%s)}" --rfc-email)
CHANGELOG

file=$package/x0-msg-server_${version#1:}_$(dpkg --print-architecture).deb
CARGO_TARGET_DIR=$package cargo-deb --quiet --no-build --deb-version "$version" --output "$file" "${@:2}"
