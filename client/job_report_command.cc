// hone report: gets the facts of a job and writes its page.
#include <ctime>
#include <map>

#include "client/commands.h"
#include "client/interrupt.h"
#include "client/job_report.h"
#include "nlohmann/json.hpp"
#include "proto/base/build_info.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kMaxStepBytes = size_t{256} << 20;

// Events up to what the job had when it was read.
absl::Status ReadEvents(Client& client, const v1::Job& job, std::vector<v1::JobEvent>* events) {
  if (job.last_sequence() == 0) return absl::OkStatus();
  return client.WatchJob(
      job.id(), 0,
      [&](const v1::JobEvent& event) {
        events->push_back(event);
        return event.sequence() < job.last_sequence();
      },
      nullptr);
}

double Field(const nlohmann::json& record, const char* key) {
  const auto found = record.find(key);
  return found != record.end() && found->is_number() ? found->get<double>() : NAN;
}

bool ParseStep(std::string_view line, v1::StepRecord* step) {
  const absl::StatusOr<nlohmann::json> record = ParseJson(line);
  if (!record.ok() || !record->is_object() || !record->contains("loss")) return false;
  if (!record->contains("learning_rate")) return false;  // an evaluation at this step
  const auto count = [&](const char* key) {
    const double value = Field(*record, key);
    return value >= 0 && value < 1e18 ? static_cast<uint64_t>(value) : 0;
  };
  step->set_step(count("step"));
  step->set_steps(count("steps"));
  step->set_loss(Field(*record, "loss"));
  step->set_learning_rate(Field(*record, "learning_rate"));
  step->set_grad_norm(Field(*record, "grad_norm"));
  step->set_tokens(count("tokens"));
  step->set_seconds(std::max(0.0, Field(*record, "seconds")));
  step->set_tokens_per_second(Field(*record, "tokens_per_second"));
  if (record->contains("kl")) step->set_kl(Field(*record, "kl"));
  if (record->contains("rewards_margins")) step->set_rewards_margins(Field(*record, "rewards_margins"));
  if (record->contains("rewards_chosen")) step->set_rewards_chosen(Field(*record, "rewards_chosen"));
  if (record->contains("rewards_rejected")) step->set_rewards_rejected(Field(*record, "rewards_rejected"));
  return true;
}

// The worker's own record of every step.
void ReadSteps(Client& client, const std::string& id, std::vector<v1::StepRecord>* steps) {
  std::string text;
  (void)client.ReadArtifact(
      id, "steps.jsonl", 0,
      [&](const std::string& chunk) -> absl::Status {
        if (text.size() + chunk.size() > kMaxStepBytes) return ResourceExhausted("steps.jsonl is too long");
        text += chunk;
        return absl::OkStatus();
      },
      nullptr);
  *steps = ParseSteps(text);
}

absl::StatusOr<std::vector<std::string>> Answers(Client& client, const v1::Job& job, bool base,
                                                 const std::vector<std::string>& questions) {
  v1::GenerateModelRequest request;
  request.set_job(job.id());
  request.set_base_only(base);
  for (size_t i = 0; i < questions.size(); ++i) {
    v1::GenerateRequest& one = *request.add_requests();
    one.set_request(i);
    one.set_temperature(0);
    one.set_use_adapter(!base);
    one.set_messages_json(nlohmann::json::array({{{"role", "user"}, {"content", questions[i]}}})
                              .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  std::vector<std::string> texts(questions.size());
  HONE_RETURN_IF_ERROR(client.Generate(
      request,
      [&](const v1::GenerateChunk& chunk) {
        if (chunk.request() < texts.size()) texts[chunk.request()] += chunk.text();
      },
      nullptr));
  return texts;
}

std::string Now() {
  const std::time_t time = std::time(nullptr);
  std::tm parts{};
  char text[64];
  if (gmtime_r(&time, &parts) == nullptr) return "";
  return std::string(text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &parts));
}

}  // namespace

std::vector<v1::StepRecord> ParseSteps(std::string_view text) {
  std::map<uint64_t, v1::StepRecord> by_step;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    v1::StepRecord step;
    if (ParseStep(text.substr(at, end - at), &step)) by_step[step.step()] = step;
    at = end + 1;
  }
  std::vector<v1::StepRecord> steps;
  for (auto& [number, step] : by_step) steps.push_back(std::move(step));
  return steps;
}

int RunJobReport(Context& context, const JobReportOptions& options) {
  HONE_TRY(Client* const client, context.Connect());
  ReportFacts facts;
  HONE_TRY(facts.job, client->GetJob(options.job));
  const absl::Status read = ReadEvents(*client, facts.job, &facts.events);
  if (!read.ok()) return Fail(context, read);
  ReadSteps(*client, facts.job.id(), &facts.steps);
  facts.made = StrCat("written ", Now(), " by hone ", BuildVersion());
  if (options.data) {
    const absl::StatusOr<v1::ValidateDataResponse> report = client->ValidateData(facts.job.spec());
    report.ok() ? (void)(facts.data_report = report->report_json())
                : (void)(facts.data_problem = std::string(report.status().message()));
  }
  if (!options.questions.empty()) {
    HONE_TRY(const std::vector<std::string> base, Answers(*client, facts.job, true, options.questions));
    HONE_TRY(const std::vector<std::string> adapter, Answers(*client, facts.job, false, options.questions));
    for (size_t i = 0; i < options.questions.size(); ++i) {
      facts.samples.push_back({options.questions[i], base[i], adapter[i]});
    }
  }
  const std::string html = JobReportHtml(facts);
  if (options.output == "-") {
    Out(html);
    return kExitOk;
  }
  const std::string path = options.output.empty() ? StrCat("report-", facts.job.id(), ".html") : options.output;
  const absl::Status written = WriteFileDurably(path, html);
  if (!written.ok()) return Fail(context, written);
  Out(StrCat(path, "\n"));
  Note(context, StrCat("One page with everything inside, ", FormatBytes(html.size()), "; open it in a browser.",
                       options.questions.empty() && facts.job.state() == v1::SUCCEEDED
                           ? " With answers before and after: --ask \"...\""
                           : ""));
  return kExitOk;
}

}  // namespace hone
