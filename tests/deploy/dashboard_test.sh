#!/usr/bin/env bash
# Rules and dashboard: Prometheus understands them, the rules' own tests pass, and their names are those of
# server/metrics.cc, both ways. Whether every expression answers on a real run: dashboard_live.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
for tool in promtool jq; do
  command -v $tool >/dev/null || { echo "$tool is not installed: skipped"; exit 77; }
done
dashboard=deploy/grafana/hone.json
rules=deploy/prometheus/rules.yml
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# ---- the rules
promtool check config deploy/prometheus/prometheus.yml
promtool test rules deploy/prometheus/rules_test.yml
sed 's/hone_gpu_temperature_celsius > 85/hone_gpu_temperature_celsius > 95/' $rules >"$scratch/rules.yml"
cp deploy/prometheus/rules_test.yml "$scratch"
if promtool test rules "$scratch/rules_test.yml" >/dev/null 2>&1; then
  echo "the rules' tests pass a rule with another limit"
  exit 1
fi
# Every alert says what happened, what to do and where to look, and is tested both silent and firing.
grep -oP '^ *- alert: \K\w+' $rules >"$scratch/alerts"
for part in summary description dashboard; do
  [ "$(grep -c "^          $part: " $rules)" = "$(wc -l <"$scratch/alerts")" ] || { echo "an alert lacks its $part"; exit 1; }
done
while read -r alert; do
  grep -q "alertname: $alert\$" deploy/prometheus/rules_test.yml || { echo "$alert has no test in which it fires"; exit 1; }
  grep -q "alertname: $alert, exp_alerts: \[\]" deploy/prometheus/rules_test.yml || { echo "$alert is never tested silent"; exit 1; }
done <"$scratch/alerts"

# ---- the dashboard's shape
jq -r '
  def overlaps($a; $b): $a.x < $b.x + $b.w and $b.x < $a.x + $a.w and $a.y < $b.y + $b.h and $b.y < $a.y + $a.h;
  [.panels[] | recurse(.panels[]?)] as $panels |
  ($panels | map(.id)) as $ids |
  [
    (if .uid == "hone" and (has("__inputs") | not) and .schemaVersion >= 36 then empty else "uid, inputs or schemaVersion" end),
    (if ($ids | length) == ($ids | unique | length) then empty else "two panels have one id" end),
    (if .templating.list | any(.name == "datasource" and .type == "datasource" and .query == "prometheus") then empty
     else "no variable for the data source" end),
    ($panels[] | select(.type | IN("row", "stat", "table", "timeseries") | not) | "\(.title): unknown type \(.type)"),
    ($panels[] | select(.gridPos | .x < 0 or .y < 0 or .w < 1 or .h < 1 or .x + .w > 24) | "\(.title): outside the 24 columns"),
    ($panels | range(length) as $i | range($i + 1; length) as $k | select(overlaps(.[$i].gridPos; .[$k].gridPos)) |
     "\(.[$i].title) and \(.[$k].title) overlap"),
    ($panels[] | select(.type != "row") |
     select((.datasource.uid == "${datasource}" and (.fieldConfig.defaults.unit | length) > 0 and (.targets | length) > 0 and
             (.description | length) > 0 and
             (.targets | all((.expr | length) > 0 and (.refId | length) > 0 and .datasource.uid == "${datasource}") and
              (map(.refId) | length == (unique | length)))) | not) |
     "\(.title): no unit, description, data source or expression, or two expressions of one name"),
    (.panels | map(select(.type == "row")) | if length >= 5 then empty else "too few rows" end)
  ] | .[]' $dashboard >"$scratch/wrong" || { echo "$dashboard is no JSON that jq reads"; exit 1; }
if [ -s "$scratch/wrong" ]; then echo "$dashboard:"; cat "$scratch/wrong"; exit 1; fi

# ---- its expressions, read by promtool as rules
jq -r '(.panels[] | recurse(.panels[]?) | .targets[]?.expr), .annotations.list[].expr' $dashboard >"$scratch/expressions"
{
  printf 'groups:\n  - name: dashboard\n    rules:\n'
  number=0
  while read -r expression; do
    number=$((number + 1))
    # shellcheck disable=SC2016  # Grafana's variables, not the shell's
    expression=$(sed -E 's/\$__(rate_)?interval/1m/g; s/\$\{?[a-z_]+\}?/.+/g' <<<"$expression")
    printf '      - record: dashboard:%s\n        expr: %s\n' "$number" "$(jq -R . <<<"$expression")"
  done <"$scratch/expressions"
} >"$scratch/expressions.yml"
promtool check rules "$scratch/expressions.yml" ||
  { echo "rule N above is line N of:"; cat -n "$scratch/expressions"; exit 1; }

# ---- names: what is exported, shown, alerted on. A histogram's parts count as the histogram; a:b is a recorded name.
names() { grep -oP '(?<![\w:])hone_[a-z_]+(?![\w:])' "$@" | sed -E 's/_(bucket|sum|count)$//' | sort -u; }
grep -ohP '"\Khone_[a-z_]+(?=")' server/metrics.cc server/card_metrics.cc | sort -u >"$scratch/exported"
names <(cat "$scratch/expressions"; jq -r '.templating.list[].definition // empty' $dashboard) >"$scratch/shown"
names <(sed -E 's/^ *#.*//; /^groups:|- name:/d' $rules) >"$scratch/ruled"
sed -E 's/ *#.*//; /^$/d' tests/deploy/dashboard_unused.txt | sort -u >"$scratch/unused"
[ "$(wc -l <"$scratch/exported")" -ge 30 ] || { echo "found too few metrics in server/metrics.cc"; exit 1; }
complain() { [ -z "$2" ] || { echo "$1: $2"; exit 1; }; }
complain "on the dashboard but not in server/metrics.cc" "$(comm -13 "$scratch/exported" "$scratch/shown" | xargs)"
complain "in the rules but not in server/metrics.cc" "$(comm -13 "$scratch/exported" "$scratch/ruled" | xargs)"
complain "in server/metrics.cc, but neither on the dashboard nor in dashboard_unused.txt" \
  "$(comm -23 "$scratch/exported" <(sort -u "$scratch/shown" "$scratch/unused") | xargs)"
complain "listed as unused, but on the dashboard or no metric" \
  "$(comm -23 "$scratch/unused" <(comm -23 "$scratch/exported" "$scratch/shown") | xargs)"
echo "$(wc -l <"$scratch/alerts") alerts, $(wc -l <"$scratch/expressions") expressions, $(wc -l <"$scratch/exported") metrics"
