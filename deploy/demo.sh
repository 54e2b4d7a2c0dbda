#!/usr/bin/env bash
# Serves the demo model on a free port, attributes one prompt, stops the server. Usage: demo.sh [COMMAND]
set -euo pipefail
command=${1:-neuron-attribution}
prompt="The capital of France is"
output=$(mktemp)

"$command" serve --model demo --listen localhost:0 --log-level warning >"$output" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$output"' EXIT

echo "Loading the demo model (the first time it is fetched and converted) ..."
until grep -q '^ready' "$output"; do
    kill -0 "$server" 2>/dev/null || { cat "$output"; echo "The server ended before it was ready."; exit 1; }
    sleep 0.2
done
address=$(sed -n 's/^listening on //p' "$output")

echo "\$ neuron-attribution attribute \"$prompt\""
"$command" attribute "$prompt" --address "$address"

kill -TERM "$server"
wait "$server"
echo "Server stopped."
