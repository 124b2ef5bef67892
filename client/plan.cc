// hone plan, data validate, data upload.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "client/commands.h"
#include "client/job_file.h"
#include "client/report.h"
#include "nlohmann/json.hpp"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

// Loads, warns, uploads: what plan, validate and submit share.
absl::Status PrepareShowing(Context& context, Client& client, JobFile& file) {
  StatusLine line(context.terminal);
  return PrepareForDaemon(
      context.environment, client,
      [&](const std::string& path, uint64_t done, uint64_t total) {
        line.Show(StrCat("uploading ", Printable(path), "  ", FormatBytes(done), " of ", FormatBytes(total)));
      },
      file);
}

// What lies elsewhere, or in another form, than a plain run would have it.
std::string PlacementText(const v1::Plan& plan) {
  std::string out;
  if (plan.mlp_chunk_rows() > 0) out += StrCat(", gated unit by ", plan.mlp_chunk_rows(), " rows");
  if (plan.decoded_layers() > 0) out += StrCat(", ", plan.decoded_layers(), " layers decoded");
  if (plan.embedding_on_host()) out += ", embedding on the host";
  if (plan.offload_inputs()) out += ", layers' inputs wait on the host";
  return out;
}

// "step 237 ms: gemm 63%, attention 12%, ...", largest first, and what it was priced with.
std::string StepText(const v1::Plan& plan) {
  std::vector<std::pair<double, std::string>> parts;
  double seconds = 0;
  for (const v1::PlanPart& part : plan.step_parts()) {
    parts.emplace_back(part.seconds(), part.name());
    seconds += part.seconds();
  }
  if (seconds <= 0) return "";
  std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::string out =
      StrCat("step about ", seconds < 1 ? StrCat(std::lround(seconds * 1e3), " ms") : FormatDuration(seconds), ":");
  const char* separator = " ";
  for (const auto& [part, name] : parts) {
    const int percent = static_cast<int>(100 * part / seconds + 0.5);
    if (percent == 0) continue;
    out += StrCat(separator, Printable(name), " ", percent, "%");
    separator = ", ";
  }
  return StrCat(out, plan.rates().measured() ? "; rates measured here" : "; rates from a table", "\n");
}

std::string PlanText(const v1::Plan& plan, bool colours) {
  const v1::PlanBytes& bytes = plan.bytes();
  Table table({"MEMORY", "BYTES", "", "SHARE"});
  table.AlignRight(1);
  table.AlignRight(2);
  table.AlignRight(3);
  const auto row = [&](const char* name, uint64_t value) {
    const double share =
        bytes.total() > 0 ? 100.0 * static_cast<double>(value) / static_cast<double>(bytes.total()) : 0;
    table.Add({name, StrCat(value), FormatBytes(value), StrCat(static_cast<int>(share + 0.5), "%")});
  };
  row("weights", bytes.weights());
  row("adapter", bytes.adapter());
  row("gradients", bytes.gradients());
  row("optimizer", bytes.optimizer());
  row("saved", bytes.saved());
  row("scratch", bytes.scratch());
  row("context", bytes.context());
  row("total", bytes.total());
  std::string out = table.Render(colours);
  out +=
      StrCat("\n", plan.fits() ? Paint(colours, Colour::kGreen, "fits") : Paint(colours, Colour::kRed, "does not fit"),
             " on ", Printable(plan.device()));
  if (plan.budget_bytes() > 0) out += StrCat(", budget ", FormatBytes(plan.budget_bytes()));
  out += StrCat("; host memory ", FormatBytes(plan.host_bytes()));
  if (plan.pinned_bytes() > 0) out += StrCat(", pinned ", FormatBytes(plan.pinned_bytes()));
  out += "\n";
  if (plan.steps() > 0) {
    out += StrCat(plan.steps(), " steps, ", FormatCount(static_cast<double>(plan.train_tokens())), " training tokens");
    if (plan.tokens_per_second() > 0)
      out += StrCat(", about ", FormatCount(plan.tokens_per_second()), " tok/s, ", FormatDuration(plan.seconds()));
    out += "\n";
  }
  out += StrCat("policy ", Printable(plan.policy()), ": micro-batch ", plan.micro_batch_tokens(), " tokens, packing ",
                plan.packing() ? "on" : "off", ", recompute ", Printable(LevelsInWords(plan.recompute())),
                ", head chunk ", plan.head_chunk_rows(), " rows", PlacementText(plan), "\n");
  out += StepText(plan);
  if (!plan.reason().empty()) out += StrCat("why: ", Printable(plan.reason()), "\n");
  if (plan.changes_size() > 0) out += plan.fits() ? "changes:\n" : "smallest changes that would fit:\n";
  for (const std::string& change : plan.changes()) out += StrCat("  ", Printable(change), "\n");
  return out;
}

}  // namespace

int RunPlan(Context& context, const PlanOptions& options) {
  HONE_TRY(JobFile file, LoadJobFile(options.file, options.sets));
  for (const std::string& advice : file.advice) Warn(context, advice);
  HONE_TRY(Client* const client, context.Connect());
  const absl::Status prepared = PrepareShowing(context, *client, file);
  if (!prepared.ok()) return Fail(context, prepared);
  const absl::StatusOr<v1::PlanJobResponse> response = client->PlanJob(file.spec, options.device);
  if (!response.ok()) return Fail(context, NameUploads(file, response.status()));
  const v1::Plan& made = response->plan();
  Out(context.json() ? MessageToJson(made) + "\n" : PlanText(made, context.terminal.out_colours));
  if (made.fits() && options.device.empty()) {
    Note(context, StrCat("Nothing was stored. Run it: hone submit ", options.file, " --watch"));
  } else if (!made.fits()) {
    Note(context, StrCat("Try a change: hone plan ", options.file, " --set FIELD=VALUE"));
  }
  return kExitOk;
}

int RunDataValidate(Context& context, const std::string& path, const std::vector<std::string>& sets) {
  HONE_TRY(JobFile file, LoadJobFile(path, sets));
  HONE_TRY(Client* const client, context.Connect());
  const absl::Status prepared = PrepareShowing(context, *client, file);
  if (!prepared.ok()) return Fail(context, prepared);
  const absl::StatusOr<v1::ValidateDataResponse> response = client->ValidateData(file.spec);
  if (!response.ok()) return Fail(context, NameUploads(file, response.status()));
  Out(context.json() ? OneLineJson(response->report_json()) + "\n"
                     : RenderReport(response->report_json(), context.terminal.out_colours));
  Note(context, StrCat("The data can be trained on; between « and » is what is trained. Next: hone plan ", path));
  return kExitOk;
}

int RunDataUpload(Context& context, const std::vector<std::string>& files) {
  HONE_TRY(Client* const client, context.Connect());
  for (const std::string& path : files) {
    StatusLine line(context.terminal);
    const absl::StatusOr<std::string> digest =
        client->UploadFile(AbsolutePath(context.environment, path), [&](uint64_t done, uint64_t total) {
          line.Show(StrCat("uploading ", Printable(path), "  ", FormatBytes(done), " of ", FormatBytes(total)));
        });
    line.Clear();
    if (!digest.ok()) return Fail(context, digest.status());
    nlohmann::ordered_json row;
    row["path"] = path;
    row["name"] = "sha256:" + *digest;
    Out(context.json() ? row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                       : StrCat("sha256:", *digest, "\n"));
  }
  return kExitOk;
}

}  // namespace hone
