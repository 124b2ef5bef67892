#include "client/job_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "client/report.h"
#include "client/terminal.h"
#include "client/watch.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

constexpr size_t kMaxPoints = 400;
constexpr double kWidth = 720, kHeight = 220, kLeft = 76, kRight = 14, kTop = 12, kBottom = 30;

constexpr char kStyle[] =
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222;background:#fff;"
    "overflow-wrap:break-word}"
    "h1{font-size:1.5em;margin-bottom:0}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.2em .8em .2em 0;vertical-align:top;"
    "border-bottom:1px solid #eee}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td{"
    "overflow-wrap:anywhere}td.dim,td.n{white-space:nowrap;overflow-wrap:normal}"
    "td.k{overflow-wrap:normal}code{font-size:12px}"
    "pre{background:#f6f6f6;padding:.8em;overflow-x:auto;white-space:pre-wrap;font-size:13px}"
    "figure{margin:1em 0}figcaption{font-size:14px}figcaption span{margin-right:1.2em;font-weight:600}"
    "svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:#555}"
    ".dim{color:#6a6a6a}.s{padding:.1em .5em;border-radius:.3em;background:#eee}"
    ".SUCCEEDED{background:#d7f0d7}.FAILED{background:#f6d5d5}.RUNNING{background:#d9e6fb}"
    ".q{margin:1em 0 .2em;font-weight:600}.two{display:grid;grid-template-columns:1fr 1fr;gap:1em}"
    "@media(max-width:600px){.two{grid-template-columns:1fr;gap:0}svg text{font-size:19px}"
    ".wide{overflow-x:auto}.wide td{overflow-wrap:normal;min-width:5em}}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#242424}"
    "td,th{border-color:#333}h2{border-color:#444}.s{color:#222}.dim{color:#999}svg text{fill:#bbb}"
    "polyline,figcaption span{filter:brightness(1.5)}}"
    "@media print{body{max-width:none;margin:0}figure,.two{break-inside:avoid}}";

std::string Number(double value, const char* format = "%.4g") {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string Row(const std::string& name, const std::string& value) {
  return value.empty() ? "" : StrCat("<tr><td class=dim>", EscapeHtml(name), "</td><td>", value, "</td></tr>\n");
}

std::string Time(const google::protobuf::Timestamp& stamp) {
  if (stamp.seconds() == 0) return "";
  const std::time_t time = static_cast<std::time_t>(stamp.seconds());
  std::tm parts{};
  char text[64];
  if (gmtime_r(&time, &parts) == nullptr) return "";
  return std::string(text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts));
}

// Evenly chosen points and always the last, so that a long run stays a small page.
std::vector<std::pair<double, double>> Thin(const std::vector<std::pair<double, double>>& points) {
  if (points.size() <= kMaxPoints) return points;
  std::vector<std::pair<double, double>> thin;
  const double each = static_cast<double>(points.size() - 1) / (kMaxPoints - 1);
  for (size_t i = 0; i < kMaxPoints; ++i) thin.push_back(points[static_cast<size_t>(static_cast<double>(i) * each)]);
  thin.back() = points.back();
  return thin;
}

struct Range {
  double low = INFINITY, high = -INFINITY, step = 0;
  void Take(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // Out to round figures, 1, 2 or 5 times a power of ten apart, `count` of them or fewer; whole ones where they count.
  void Round(int count, bool whole) {
    if (!(low <= high)) low = 0, high = 1;
    if (!(high - low > 1e-12 * std::max(std::abs(low), std::abs(high)))) {
      const double some = low != 0 ? std::abs(low) / 2 : 0.5;
      low -= some, high += some;
    }
    const double raw = (high - low) / count, power = std::pow(10, std::floor(std::log10(raw)));
    step = (raw <= power ? 1 : raw <= 2 * power ? 2 : raw <= 5 * power ? 5 : 10) * power;
    if (whole) step = std::max(step, 1.0);
  }
  void Widen() {
    low = std::floor(low / step + 1e-9) * step;
    high = std::ceil(high / step - 1e-9) * step;
  }
  double First() const { return std::ceil(low / step - 1e-9) * step; }
  double Share(double value) const { return high > low ? (value - low) / (high - low) : 0.5; }
};

// A tick's figure, without what rounding adds: 0 is 0.
std::string Tick(double value, double step) { return Number(std::abs(value) < step * 1e-6 ? 0 : value, "%.4g"); }

std::string Facts(const v1::Job& job) {
  const v1::JobSpec& spec = job.has_resolved_spec() ? job.resolved_spec() : job.spec();
  std::string out = "<table>\n";
  const std::string state = v1::JobState_Name(job.state());
  out += Row("state", StrCat("<span class=\"s ", state, "\">", state, "</span> ", EscapeHtml(job.state_message())));
  out += Row("objective", spec.objective().has_kto() ? "KTO" : "supervised fine-tuning");
  out += Row("model", EscapeHtml(spec.model().source()));
  out += Row("data", EscapeHtml(job.spec().data().train()));
  if (job.has_last_step()) out += Row("steps", StrCat(job.last_step().step(), " of ", job.last_step().steps()));
  if (job.has_last_step()) out += Row("last loss", Number(job.last_step().loss()));
  if (job.has_last_eval()) {
    std::string eval = StrCat("loss ", Number(job.last_eval().loss()));
    if (job.last_eval().perplexity() > 0) eval += StrCat(", perplexity ", Number(job.last_eval().perplexity()));
    if (job.last_eval().has_rewards_margins()) eval += StrCat(", margin ", Number(job.last_eval().rewards_margins()));
    out += Row("evaluation", eval);
  }
  out += Row("created", Time(job.create_time()));
  out += Row("started", Time(job.start_time()));
  out += Row("ended", Time(job.end_time()));
  for (const auto& [key, value] : job.options().labels()) out += Row("label", EscapeHtml(StrCat(key, "=", value)));
  return out + "</table>\n";
}

template <typename Get>
Curve Of(const ReportFacts& facts, const std::string& name, const std::string& colour, const Get& get) {
  Curve curve{name, colour, {}};
  for (const v1::StepRecord& step : facts.steps) curve.points.push_back({static_cast<double>(step.step()), get(step)});
  return curve;
}

std::string Curves(const ReportFacts& facts) {
  if (facts.steps.empty()) return "<p class=dim>No step has been recorded yet.</p>\n";
  std::vector<Curve> loss = {Of(facts, "loss", "#3366cc", [](const auto& s) { return s.loss(); })};
  Curve eval{"evaluation", "#cc3333", {}};
  for (const v1::JobEvent& event : facts.events) {
    if (event.has_eval()) eval.points.push_back({static_cast<double>(event.eval().step()), event.eval().loss()});
  }
  if (!eval.points.empty()) loss.push_back(eval);
  std::string out = CurvesSvg(loss, "step", "loss");
  const bool kto =
      std::any_of(facts.steps.begin(), facts.steps.end(), [](const auto& s) { return s.has_rewards_margins(); });
  if (kto) {
    const auto optional = [](bool has, double value) { return has ? value : NAN; };
    out += CurvesSvg({Of(facts, "margin", "#338833",
                         [&](const auto& s) { return optional(s.has_rewards_margins(), s.rewards_margins()); }),
                      Of(facts, "chosen", "#3366cc",
                         [&](const auto& s) { return optional(s.has_rewards_chosen(), s.rewards_chosen()); }),
                      Of(facts, "rejected", "#cc3333",
                         [&](const auto& s) { return optional(s.has_rewards_rejected(), s.rewards_rejected()); })},
                     "step", "reward");
    out += CurvesSvg({Of(facts, "KL", "#884488", [&](const auto& s) { return optional(s.has_kl(), s.kl()); })}, "step",
                     "KL");
  }
  out +=
      CurvesSvg({Of(facts, "gradient norm", "#996600", [](const auto& s) { return s.grad_norm(); })}, "step", "norm");
  out += CurvesSvg({Of(facts, "learning rate", "#336666", [](const auto& s) { return s.learning_rate(); })}, "step",
                   "rate");
  out += CurvesSvg({Of(facts, "tokens a second", "#555555", [](const auto& s) { return s.tokens_per_second(); })},
                   "step", "tokens/s");
  return out;
}

std::string Compared(const std::string& name, const std::string& plan, const std::string& actual, double ratio) {
  return StrCat("<tr><td class=k>", EscapeHtml(name), "</td><td class=n>", plan, "</td><td class=n>", actual,
                "</td><td class=n>", ratio > 0 ? Number(ratio * 100, "%.0f") + " %" : std::string(), "</td></tr>\n");
}

std::string PlanAgainstActual(const ReportFacts& facts) {
  const v1::Job& job = facts.job;
  if (!job.has_plan()) return "";
  std::string out =
      "<h2>Plan and what was measured</h2>\n<table><tr><th></th><th class=n>planned</th><th class=n>measured</th>"
      "<th class=n>measured / planned</th></tr>\n";
  for (const v1::ArenaUse& arena : job.memory().arenas()) {
    out += Compared(arena.name(), FormatBytes(arena.planned_bytes()), FormatBytes(arena.actual_bytes()),
                    arena.planned_bytes() > 0
                        ? static_cast<double>(arena.actual_bytes()) / static_cast<double>(arena.planned_bytes())
                        : 0);
  }
  // By the driver, on a card; else what the arenas held.
  uint64_t process = job.memory().process_bytes();
  if (process == 0) {
    for (const v1::ArenaUse& arena : job.memory().arenas()) process += arena.actual_bytes();
  }
  out += Compared("memory in all", FormatBytes(job.plan().bytes().total()), process > 0 ? FormatBytes(process) : "",
                  process > 0 && job.plan().bytes().total() > 0
                      ? static_cast<double>(process) / static_cast<double>(job.plan().bytes().total())
                      : 0);
  double tokens = 0, seconds = 0;
  for (const v1::StepRecord& step : facts.steps) {
    tokens += static_cast<double>(step.tokens());
    seconds += step.seconds();
  }
  if (seconds > 0 && job.plan().tokens_per_second() > 0) {
    out += Compared("tokens a second", FormatCount(job.plan().tokens_per_second()), FormatCount(tokens / seconds),
                    tokens / seconds / job.plan().tokens_per_second());
  }
  if (job.plan().seconds() > 0) {
    out += Compared("training steps' time", FormatDuration(job.plan().seconds()), FormatDuration(seconds),
                    seconds / job.plan().seconds());
  }
  out += "</table>\n";
  if (!job.plan().reason().empty()) out += StrCat("<p>", EscapeHtml(job.plan().reason()), "</p>\n");
  return out;
}

std::string History(const ReportFacts& facts) {
  std::string out =
      "<h2>History</h2>\n<div "
      "class=wide><table><tr><th>attempt</th><th>end</th><th>steps</th><th>device</th><th></th></tr>\n";
  for (const v1::Attempt& attempt : facts.job.attempts()) {
    out += StrCat("<tr><td>", attempt.number(), "</td><td>",
                  attempt.exit().empty() ? "running" : EscapeHtml(attempt.exit()), "</td><td>", attempt.first_step(),
                  " to ", attempt.last_step(), "</td><td>", EscapeHtml(attempt.device()), "</td><td>",
                  EscapeHtml(attempt.message()), "</td></tr>\n");
  }
  out += "</table></div>\n<div class=wide><table>\n";
  for (const v1::JobEvent& event : facts.events) {
    if (event.has_state()) {
      out += StrCat("<tr><td class=dim>", Time(event.time()), "</td><td>", v1::JobState_Name(event.state().to()),
                    "</td><td>", EscapeHtml(event.state().reason()), "</td><td>", EscapeHtml(event.state().message()),
                    "</td></tr>\n");
    } else if (!event.warning().empty()) {
      out += StrCat("<tr><td class=dim>", Time(event.time()), "</td><td>warning</td><td colspan=2>",
                    EscapeHtml(event.warning()), "</td></tr>\n");
    }
  }
  return out + "</table></div>\n";
}

std::string Samples(const ReportFacts& facts) {
  if (facts.samples.empty()) return "";
  std::string out = "<h2>Before and after</h2>\n";
  for (const ReportFacts::Sample& sample : facts.samples) {
    out += StrCat("<div class=q>", EscapeHtml(sample.question),
                  "</div><div class=two><div><span class=dim>base</span><pre>", EscapeHtml(sample.base),
                  "</pre></div><div><span class=dim>adapter</span><pre>", EscapeHtml(sample.adapter),
                  "</pre></div></div>\n");
  }
  return out;
}

std::string Receipts(const v1::Job& job) {
  std::string out = "<h2>Receipts</h2>\n<table><tr><th>file</th><th class=n>size</th><th>SHA-256</th></tr>\n";
  for (const v1::Artifact& artifact : job.artifacts()) {
    out += StrCat("<tr><td>", EscapeHtml(artifact.path()), "</td><td class=n>", FormatBytes(artifact.bytes()),
                  "</td><td><code>", EscapeHtml(artifact.sha256()), "</code></td></tr>\n");
  }
  out += "</table>\n";
  if (!job.result_json().empty()) out += StrCat("<pre>", EscapeHtml(RenderReport(job.result_json())), "</pre>\n");
  return out;
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t') out += c;
    }
  }
  return out;
}

std::string CurvesSvg(const std::vector<Curve>& curves, const std::string& x_label, const std::string& y_label) {
  Range x, y;
  for (const Curve& curve : curves) {
    for (const auto& [at, value] : curve.points) {
      if (!std::isfinite(value)) continue;
      x.Take(at);
      y.Take(value);
    }
  }
  x.Round(6, true);
  y.Round(5, false);
  y.Widen();
  const double width = kWidth - kLeft - kRight, height = kHeight - kTop - kBottom;
  std::string out = "<figure><figcaption>";
  for (const Curve& curve : curves) {
    out += StrCat("<span style=\"color:", curve.colour, "\">", EscapeHtml(curve.name), "</span>");
  }
  out += StrCat("</figcaption>\n<svg viewBox=\"0 0 ", kWidth, " ", kHeight, "\" role=\"img\" aria-label=\"",
                EscapeHtml(y_label), " by ", EscapeHtml(x_label), "\">\n");
  for (double value = y.First(); value <= y.high + y.step / 2; value += y.step) {
    const double at = kTop + height * (1 - y.Share(value));
    out += StrCat("<line x1=\"", kLeft, "\" x2=\"", kWidth - kRight, "\" y1=\"", Number(at), "\" y2=\"", Number(at),
                  "\" stroke=\"#8884\"/><text x=\"", kLeft - 8, "\" y=\"", Number(at + 4), "\" text-anchor=\"end\">",
                  Tick(value, y.step), "</text>\n");
  }
  for (double value = x.First(); value <= x.high + x.step * 1e-6; value += x.step) {
    out += StrCat("<text x=\"", Number(kLeft + width * x.Share(value)), "\" y=\"", kHeight - 8,
                  "\" text-anchor=\"middle\">", Tick(value, x.step), "</text>\n");
  }
  for (const Curve& curve : curves) {
    std::string points, last;
    for (const auto& [at, value] : Thin(curve.points)) {
      if (!std::isfinite(value)) continue;
      last = StrCat(Number(kLeft + width * x.Share(at), "%.1f"), ",",
                    Number(kTop + height * (1 - y.Share(value)), "%.1f"));
      points += StrCat(points.empty() ? "" : " ", last);
    }
    if (points == last && !last.empty()) points = StrCat(last, " ", last);  // one point is drawn as a dot
    out +=
        StrCat("<polyline fill=\"none\" stroke=\"", curve.colour,
               "\" stroke-width=\"2\" stroke-linejoin=\"round\" stroke-linecap=\"round\" points=\"", points, "\"/>\n");
  }
  return out + "</svg></figure>\n";
}

std::string JobReportHtml(const ReportFacts& facts) {
  const v1::Job& job = facts.job;
  const std::string name = EscapeHtml(job.display_name().empty() ? job.id() : job.display_name());
  std::string out = StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"><meta http-equiv=\"Content-Security-Policy\" "
      "content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>",
      name, "</title><style>", kStyle, "</style></head><body>\n");
  out += StrCat("<h1>", name, "</h1><p class=dim>job ", EscapeHtml(job.id()), " · ", EscapeHtml(facts.made), "</p>\n");
  out += Facts(job) + "<h2>Curves</h2>\n" + Curves(facts) + PlanAgainstActual(facts) + Samples(facts);
  if (!facts.data_report.empty()) {
    out += StrCat("<h2>Data</h2>\n<pre>", EscapeHtml(RenderReport(facts.data_report)), "</pre>\n");
  } else if (!facts.data_problem.empty()) {
    out += StrCat("<h2>Data</h2>\n<p class=dim>", EscapeHtml(facts.data_problem), "</p>\n");
  }
  out += History(facts) + Receipts(job);
  const v1::JobSpec& spec = job.has_resolved_spec() ? job.resolved_spec() : job.spec();
  return out + StrCat("<h2>Job file, every default filled in</h2>\n<pre>", EscapeHtml(SpecToYaml(spec)),
                      "</pre>\n</body></html>\n");
}

}  // namespace hone
