// One self-contained HTML page about a job: curves as inline SVG, plan against what was measured, data statistics,
// answers before and after, receipts. Pure: facts in, text out; getting the facts is job_report_command.cc's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "hone/v1/jobs.pb.h"

namespace hone {

struct ReportFacts {
  v1::Job job;
  std::vector<v1::JobEvent> events;
  std::vector<v1::StepRecord> steps;  // by step, the last attempt's
  std::string data_report;            // JSON; empty: not asked for
  std::string data_problem;           // why there is none
  struct Sample {
    std::string question, base, adapter;
  };
  std::vector<Sample> samples;
  std::string made;  // when, by which version
};

// Text from the job is escaped; the page has no script and loads nothing.
std::string JobReportHtml(const ReportFacts& facts);

// The steps of a job's steps.jsonl by number, the last line of each; evaluations, which lie between them, left out.
std::vector<v1::StepRecord> ParseSteps(std::string_view text);

struct Curve {
  std::string name;
  std::string colour;  // CSS
  std::vector<std::pair<double, double>> points;
};
// A figure with a legend and an SVG element with axes; points that are no numbers are left out. At most a few hundred
// points are drawn a curve.
std::string CurvesSvg(const std::vector<Curve>& curves, const std::string& x_label, const std::string& y_label);
std::string EscapeHtml(std::string_view text);

}  // namespace hone
