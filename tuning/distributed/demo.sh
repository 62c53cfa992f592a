#!/bin/bash
# A tuning on two "machines" with a PostgreSQL server, all on this one; one of them is killed on the way.
set -euo pipefail
folder=$(mktemp -d /tmp/tuning_demo.XXXX)
programs=$(dirname "$(readlink -f "$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb | tail -1)")")
user=()
if [ "$(id -u)" = 0 ]; then # the server refuses to run as root
    user=(runuser -u postgres --)
    chown postgres "$folder"
fi
server() { (cd "$folder" && "${user[@]}" "$programs/$@"); }
trap 'server pg_ctl -D "$folder/data" -m immediate stop > /dev/null; rm -rf "$folder"' EXIT

server initdb -D "$folder/data" -U tuner -A trust > "$folder/initdb.log"
server pg_ctl -D "$folder/data" -w -l "$folder/server.log" -o "-k $folder -h ''" start > /dev/null
server createdb -h "$folder" -U tuner tuning

tune() {
    sb3-pg tune --algo reinforce --env CartPole-v1 -n 10000 --n-envs 8 --n-trials 8 -j 1 --final-top 2 --final-seeds 3 \
        --n-startup-trials 4 --storage "postgresql://tuner@/tuning?host=$folder" "$@"
}
tune --trials-only -f "$folder/first" > "$folder/first.log" 2>&1 &
tune --trials-only -f "$folder/second" > "$folder/second.log" 2>&1 &
second=$!
sleep "${KILL_AFTER:-20}"
echo "kill -9 of the second machine"
# The shell, and the process that it has started.
pkill -9 -P "$second" || true
kill -9 "$second" || true
tune -f "${1:-results/distributed_demo}"
