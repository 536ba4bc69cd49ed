#!/bin/sh
# Makes a seccomp profile that allows what a node needs beside an engine's default: the three calls of io_uring.
#
# The default is the engine's own, so it is not here: Podman has it as a file; of Docker it is profiles/seccomp/default.json in the sources
# of the version in use (moby/profiles, before that moby/moby).
set -eu

case ${1:-} in
    -h | --help)
        echo 'Usage: deploy/seccomp.sh [DEFAULT-PROFILE] > seccomp.json    (default: /usr/share/containers/seccomp.json)'
        exit 0
        ;;
esac
profile=${1:-/usr/share/containers/seccomp.json}
command -v jq >/dev/null || { echo 'seccomp.sh: jq is missing (Debian: apt-get install jq)' >&2 && exit 1; }
[ -r "$profile" ] || { echo "seccomp.sh: $profile cannot be read; name the default profile of your engine" >&2 && exit 1; }

# A call has one rule: where a default refuses these by name, it loses the names.
jq '
  ["io_uring_setup", "io_uring_enter", "io_uring_register"] as $calls
  | if (.syscalls | type) != "array" then error("this is no seccomp profile: it has no list of syscalls") else . end
  | .syscalls |= map(if has("names") then .names -= $calls else . end | select((has("names") | not) or .names != []))
  | .syscalls += [{names: $calls, action: "SCMP_ACT_ALLOW"}]
' "$profile"
