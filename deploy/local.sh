#!/bin/sh
# Starts an app server, two nodes and a balancer on this machine, as deploy/compose.yaml does in containers: the same processes, from
# the same signalring.toml and haproxy.cfg or nginx.conf. Ctrl+C or SIGTERM stops all of it.
set -eu

usage() {
    cat <<'EOF'
Usage: deploy/local.sh [--balancer haproxy|nginx] [--listen IP:PORT] [--binary PATH] [--message-pack]

  --balancer NAME   haproxy (default) or nginx, both as in Debian's packages
  --listen IP:PORT  where the balancer listens (default 127.0.0.1:8080); everything else is on ports that the kernel chooses
  --binary PATH     the signalring command (default: target/release/signalring or target/debug/signalring, the newer one)
  --message-pack    lanes speak MessagePack

Exit codes: 0 stopped by a signal; 1 something did not start, or ended by itself; 2 wrong arguments.
EOF
}

wrong() {
    printf 'local.sh: %s\n' "$*" >&2
    exit 2
}

fail() {
    printf 'local.sh: %s\n' "$*" >&2
    exit 1
}

deploy=$(cd "$(dirname "$0")" && pwd)
balancer=haproxy listen=127.0.0.1:8080 binary='' message_pack=false
while [ $# -gt 0 ]; do
    case $1 in
        --message-pack) message_pack=true ;;
        -h | --help) usage && exit 0 ;;
        --balancer | --listen | --binary)
            [ $# -ge 2 ] || wrong "$1 needs a value"
            case $1 in
                --balancer) balancer=$2 ;;
                --listen) listen=$2 ;;
                --binary) binary=$2 ;;
            esac
            shift
            ;;
        *) wrong "there is no $1; see deploy/local.sh --help" ;;
    esac
    shift
done
case $balancer in
    haproxy | nginx) ;;
    *) wrong "--balancer takes haproxy or nginx, not $balancer" ;;
esac
# Debian keeps servers out of the PATH of people.
PATH=$PATH:/usr/sbin:/sbin
command -v "$balancer" >/dev/null || fail "$balancer is missing (Debian: apt-get install $balancer)"
[ "$balancer" = haproxy ] || command -v envsubst >/dev/null || fail "envsubst is missing (Debian: apt-get install gettext-base)"
if [ -z "$binary" ]; then
    # `ls -t` is fine for two names of our own.
    # shellcheck disable=SC2012
    binary=$(ls -t "$deploy/../target/release/signalring" "$deploy/../target/debug/signalring" 2>/dev/null | head -n 1)
fi
[ -x "$binary" ] || fail "there is no ${binary:-signalring command}: cargo build --release, or name one with --binary"

# Settings of whoever starts this are not its own.
for name in $(env | sed -n 's/^\(SIGNALRING_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done

run=$(mktemp -d "${TMPDIR:-/tmp}/signalring-XXXXXX")
started=''

# The balancer first and the app server last, which the nodes tell who is gone.
# shellcheck disable=SC2317 # The trap calls it.
stop() {
    trap '' INT TERM HUP
    for process in $started; do
        if kill -TERM "$process" 2>/dev/null; then wait "$process" 2>/dev/null || true; fi
    done
    rm -rf "$run"
}
trap stop EXIT
trap 'exit 0' INT TERM HUP

# start NAME COMMAND...: in the background, its output in a file of that name.
start() {
    name=$1
    shift
    "$@" >"$run/$name.log" 2>&1 &
    process=$!
    # The last one started is stopped first.
    started="$process $started"
}

# await NAME COMMAND...: repeats the command until it succeeds, for as long as the process started last lives, 10 seconds at most.
await() {
    name=$1 patience=100
    shift
    until "$@"; do
        # One that has ended is a zombie, since nobody has waited for it.
        state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$process/status" 2>/dev/null || true)
        if [ "${state:-Z}" = Z ] || [ $patience -eq 0 ]; then
            cat "$run/$name.log" >&2
            fail "$name did not start${said:+: $said}"
        fi
        sleep 0.1
        patience=$((patience - 1))
    done
}

# printed NAME PREFIX: what stands behind the first PREFIX that it has printed, in $said.
# shellcheck disable=SC2317 # await calls it.
printed() {
    said=$(sed -n "s,.*$2\([^ ]*\).*,\1,p" "$run/$1.log" | head -n 1)
    [ -n "$said" ]
}

# answers URL REGULAR-EXPRESSION: whether it says something of the kind.
# shellcheck disable=SC2317 # await calls it.
answers() {
    said=$("$binary" health --timeout 1 "$1" 2>&1) || true
    printf '%s\n' "$said" | grep -q "$2"
}

if [ $message_pack = true ]; then set -- --message-pack; else set --; fi
start app "$binary" app --listen 127.0.0.1:0 "$@"
app_process=$process
await app printed app 'listening on '
app=$said

# As in the containers: one file for all nodes, with the key beside it, and what differs in the environment.
cp "$deploy/signalring.toml" "$run/signalring.toml"
head -c 36 /dev/urandom | base64 >"$run/token.key"
export SIGNALRING_APP_SERVER="$app" SIGNALRING_LISTEN=127.0.0.1:0 SIGNALRING_ADMIN=127.0.0.1:0
# Ctrl+C means now.
export SIGNALRING_DRAIN_DELAY=0s SIGNALRING_DRAIN_WINDOW=0s
export SIGNALRING_TRUSTED_PROXIES=127.0.0.1 SIGNALRING_USE_MESSAGE_PACK="$message_pack"

# node NAME: starts one and waits until it is ready; leaves $address, $admin and $process.
node() {
    start "node-$1" env SIGNALRING_NODE_NAME="$1" "$binary" run --config "$run/signalring.toml"
    await "node-$1" printed "node-$1" 'listening on '
    address=$said
    await "node-$1" printed "node-$1" 'admin on '
    admin=$said
    await "node-$1" answers "$admin/ready" '^ready'
}
node a
a=$address a_admin=$admin a_process=$process
node b
b=$address b_admin=$admin b_process=$process

export LISTEN="$listen" CONTROL_SOCKET="$run/control.sock"
export NODE_A="${a#http://}" NODE_A_ADMIN_PORT="${a_admin##*:}" NODE_B="${b#http://}" NODE_B_ADMIN_PORT="${b_admin##*:}"
case $balancer in
    haproxy)
        start haproxy haproxy -db -f "$deploy/haproxy.cfg"
        ;;
    nginx)
        # The names in single quotes are those to replace; all others are nginx's own.
        # shellcheck disable=SC2016
        envsubst '${LISTEN} ${NODE_A} ${NODE_B}' <"$deploy/nginx.conf" >"$run/signalring.conf"
        # What a distribution's main file has, as far as it is needed, with every folder in one that this user may write.
        cat >"$run/nginx.conf" <<EOF
daemon off;
pid $run/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path $run/body;
  proxy_temp_path $run/proxy;
  fastcgi_temp_path $run/fastcgi;
  uwsgi_temp_path $run/uwsgi;
  scgi_temp_path $run/scgi;
  include $run/signalring.conf;
}
EOF
        # Workers of a master that runs as root are somebody else, and look for temporary folders here.
        chmod 711 "$run"
        start nginx nginx -p "$run" -e stderr -c "$run/nginx.conf"
        ;;
esac
balancer_process=$process
# A node's answer, which comes through the balancer: it has no such page.
await "$balancer" answers "http://$listen/dotnetify/nothing" 'says 404'

cat <<EOF
app server  $app  (process $app_process)
node a      $a  admin $a_admin  (process $a_process)
node b      $b  admin $b_admin  (process $b_process)
balancer    http://$listen  $balancer, without stickiness  (process $balancer_process)
logs        $run
Pages connect to http://$listen with dotnetify.hubServerUrl = "http://$listen". Ctrl+C stops all of it.
EOF

# As long as the balancer runs: a node or the app server may be killed, to see what happens.
wait "$balancer_process" || fail "$balancer ended: $(tail -n 3 "$run/$balancer.log")"
fail "$balancer ended by itself"
