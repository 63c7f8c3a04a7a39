#!/usr/bin/env bash
# What the Debian package does on a machine with systemd. tests/packages.sh runs it in a container, as the only service of it.
#
#   installed.sh PACKAGE
set -Eeuo pipefail
package=$1
settings=/etc/x0-msg-server.toml
unit=x0-msg-server
trap 'echo "failed in line $LINENO: $BASH_COMMAND"; journalctl --no-pager --lines=30 --unit="$unit" --output=cat; systemctl --no-pager --lines=0 status "$unit"' ERR

step() { echo "- $*"; }
fail() { echo "$*"; false; }
property() { systemctl show --value --property="$1" "$unit"; }
# Waits until this command succeeds.
await() {
    local end=$((SECONDS + 30))
    until "$@" >/dev/null 2>&1; do ((SECONDS < end)) || fail "does not become true: $*"; done
}
ready() { await x0-msg-server health --ready; }
logs() { journalctl --output=cat --unit="$unit" | grep --fixed-strings -- "$1"; }
metric() { curl --silent http://127.0.0.1:8080/metrics | grep --fixed-strings --line-regexp -- "$1"; }
is() { [[ $(property "$1") == "$2" ]]; }
is_not() { [[ $(property "$1") != "$2" ]]; }

# A system call that the unit does not allow ends the broker here, so that none goes unnoticed.
mkdir -p "/etc/systemd/system/$unit.service.d"
printf '[Service]\nSystemCallErrorNumber=kill\n' >"/etc/systemd/system/$unit.service.d/strict.conf"
# Containers say with it that they start no services.
rm -f /usr/sbin/policy-rc.d

step "an upgrade from the package of x0 removes its files, and says what is left"
old=$(mktemp -d)
mkdir -p "$old"/{DEBIAN,etc/apache2/sites-available,var/lib/msgserver,var/www/msg-server}
touch "$old"/etc/apache2/sites-available/001-msgserver.conf "$old"/var/lib/msgserver/data "$old"/var/www/msg-server/index.py
printf 'Package: x0-msg-server\nVersion: 1.0\nArchitecture: all\nMaintainer: x0 <x0@localhost>\nDescription: x0\n' >"$old/DEBIAN/control"
dpkg-deb --build "$old" "$old.deb" >/dev/null
dpkg --install "$old.deb" >/dev/null
dpkg --install "$package" >"$old.log" 2>&1 || { cat "$old.log"; fail "the package does not install"; }
grep --quiet 'a2dissite 001-msgserver' "$old.log"
if grep --quiet downgrading "$old.log"; then fail "the package of x0 sorts higher"; fi
if ls /etc/apache2/sites-available/001-msgserver.conf /var/lib/msgserver /var/www/msg-server 2>/dev/null; then fail "files of x0 are left"; fi

step "the service runs without rights, with the settings that were installed"
ready
[[ $(property ActiveState) == active && $(systemctl is-enabled "$unit") == enabled ]]
pid=$(property MainPID)
[[ $(stat --format=%U "/proc/$pid") == x0-msg-server ]]
grep --quiet '^CapBnd:[[:space:]]*0*$' "/proc/$pid/status"
[[ -n $(ls /var/lib/x0-msg-server/) ]]
x0-msg-server config check >/dev/null
x0-msg-server send --to A '{"n":1}' >/dev/null
[[ $(x0-msg-server listen --session A --count 1 --payload) == '{"n":1}' ]]

step "reload reads the settings again"
echo 'log-level = "debug"' >>"$settings"
systemctl reload "$unit"
await logs '"log-level"'

step "a restart keeps messages, and reads secrets from /etc/credstore"
x0-msg-server send --to B '{"n":2}' >/dev/null
install -d -m 700 /etc/credstore
printf '[[key]]\nname = "shop"\nkey = "0123456789abcdef0123456789abcdef"\nsend = ["*"]\n' >/etc/credstore/x0-msg-server.api-keys
chmod 600 /etc/credstore/x0-msg-server.api-keys
cp "$settings" "$settings.before"
printf 'api-key-file = "credential:api-keys"\n' >>"$settings"
systemctl restart "$unit"
ready
curl --silent --fail --header 'Authorization: Bearer 0123456789abcdef0123456789abcdef' http://127.0.0.1:8080/v1/sessions/B | grep --quiet '"pending":1'

step "TLS and the look-up of a name need nothing more"
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 1 -keyout /etc/credstore/x0-msg-server.tls-key \
    -out /etc/credstore/x0-msg-server.tls-cert 2>/dev/null
cp "$settings" "$settings.plain"
cat >>"$settings" <<'TLS'
tls-cert = "credential:tls-cert"
tls-key = "credential:tls-key"
auth = "token"
token-jwks-url = "http://localhost:9/keys"
TLS
systemctl restart "$unit"
await curl --silent --fail --cacert /etc/credstore/x0-msg-server.tls-cert https://localhost:8080/readyz
# The name was found: nobody answers at its address.
await logs 'tcp connect error'
is NRestarts 0
mv "$settings.plain" "$settings"
systemctl restart "$unit"
ready

step "a broker that dies is started again; one with wrong settings is not"
pid=$(property MainPID)
kill -KILL "$pid"
await is NRestarts 1
ready
[[ $(x0-msg-server listen --session B --count 1 --payload) == '{"n":2}' ]]
echo 'no-such-setting = 1' >>"$settings"
if systemctl restart "$unit" 2>/dev/null; then fail "it starts with a wrong setting"; fi
await is ActiveState failed
is ExecMainStatus 2
mv "$settings.before" "$settings"
systemctl start "$unit"
ready

step "an upgrade hands over to the new process"
pid=$(property MainPID)
# A page of x0 waits for a message meanwhile. It would stop for good at the first failure.
curl --silent --fail --data '{"type":"GET","session_src":"page"}' http://127.0.0.1:8080/python/MsgHandler.py >"$old.poll" &
poll=$!
await metric 'x0_msg_waiting_polls{transport="legacy"} 1'
dpkg --install "$package" >/dev/null 2>&1
await is_not MainPID "$pid"
wait "$poll"
grep --quiet --fixed-strings '{"messages":null' "$old.poll"
ready
[[ $(property NRestarts) == 0 && $(property ActiveState) == active ]]
x0-msg-server send --to C '{"n":3}' >/dev/null

step "with the socket unit a stopped service refuses no connection"
systemctl stop "$unit"
systemctl enable --quiet --now "$unit.socket"
# The connection starts the service.
[[ $(x0-msg-server listen --session C --count 1 --payload) == '{"n":3}' ]]
[[ $(property ActiveState) == active ]]
systemctl disable --quiet --now "$unit.socket"

step "the package of x0 can be put back, and replaced again"
dpkg --install "$old.deb" >/dev/null 2>&1
[[ $(property ActiveState) != active && -f /var/www/msg-server/index.py ]]
if ls /etc/systemd/system/*.target.wants/"$unit".* 2>/dev/null; then fail "units are left"; fi
dpkg --install "$package" >/dev/null 2>&1
ready
is ActiveState active
[[ $(systemctl is-enabled "$unit") == enabled ]]

step "removal stops it and keeps settings and messages; purge removes them"
dpkg --remove x0-msg-server >/dev/null 2>&1
[[ -f $settings && -d /var/lib/x0-msg-server ]]
[[ $(property ActiveState) != active ]]
dpkg --purge x0-msg-server >/dev/null 2>&1
if ls -d "$settings" /var/lib/x0-msg-server /var/lib/private/x0-msg-server /etc/systemd/system/multi-user.target.wants/"$unit.service" \
    "/etc/systemd/system/$unit.service" 2>/dev/null; then
    fail "purge leaves files"
fi
