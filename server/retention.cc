#include "server/retention.h"

#include <filesystem>
#include <vector>

#include "spdlog/spdlog.h"

namespace hone {
namespace {

namespace fs = std::filesystem;
constexpr int kBatch = 100;

uint64_t BytesOf(const fs::path& folder) {
  uint64_t bytes = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (!it->is_symlink(ignored) && it->is_regular_file(ignored)) bytes += it->file_size(ignored);
  }
  return bytes;
}

uint64_t RemoveFolder(const fs::path& folder) {
  const uint64_t bytes = BytesOf(folder);
  std::error_code error;
  fs::remove_all(folder, error);
  return error ? 0 : bytes;
}

}  // namespace

uint64_t Retention::RemoveLogs(const std::string& id) { return RemoveFolder(layout_->Attempts(id)); }
uint64_t Retention::RemoveCheckpoints(const std::string& id) {
  return RemoveFolder(fs::path(layout_->Output(id)) / "checkpoints");
}

bool Retention::Remove(const std::string& id, int64_t bit, RetentionReport* report) {
  if (bit == kPurgedLogs) report->bytes += RemoveLogs(id);
  if (bit == kPurgedCheckpoints) report->bytes += RemoveCheckpoints(id);
  // Noted last: what is removed twice does no harm, what is noted and stays would stay for ever.
  if (!store_->Purge(id, bit).ok()) return false;
  ++(bit == kPurgedLogs ? report->logs : bit == kPurgedCheckpoints ? report->checkpoints : report->events);
  return true;
}

void Retention::ByAge(int64_t bit, std::chrono::seconds age, const std::atomic<bool>& stop, RetentionReport* report) {
  if (age.count() <= 0) return;
  const int64_t before = NowMicros() - std::chrono::duration_cast<std::chrono::microseconds>(age).count();
  while (!stop) {
    const auto jobs = store_->EndedJobs(before, bit, kBatch);
    if (!jobs.ok() || jobs->empty()) return;
    for (const EndedJob& job : *jobs) {
      if (stop || !Remove(job.id, bit, report)) return;
    }
  }
}

void Retention::BySize(int64_t bit, uint64_t limit, const std::atomic<bool>& stop, RetentionReport* report) {
  if (limit == 0) return;
  const auto jobs = store_->EndedJobs(NowMicros(), bit, 1'000'000);
  if (!jobs.ok()) return;
  std::vector<uint64_t> sizes;
  uint64_t total = 0;
  for (const EndedJob& job : *jobs) {
    if (stop) return;
    sizes.push_back(bit == kPurgedEvents        ? static_cast<uint64_t>(job.events)
                    : bit == kPurgedCheckpoints ? BytesOf(fs::path(layout_->Output(job.id)) / "checkpoints")
                                                : BytesOf(layout_->Attempts(job.id)));
    total += sizes.back();
  }
  for (size_t i = 0; i < jobs->size() && total > limit && !stop; ++i) {
    if (!Remove((*jobs)[i].id, bit, report)) return;
    total -= sizes[i];
  }
}

RetentionReport Retention::Run(const std::atomic<bool>& stop) {
  RetentionReport report;
  ByAge(kPurgedLogs, options_.logs, stop, &report);
  ByAge(kPurgedCheckpoints, options_.checkpoints, stop, &report);
  ByAge(kPurgedEvents, options_.events, stop, &report);
  BySize(kPurgedLogs, options_.log_bytes, stop, &report);
  BySize(kPurgedCheckpoints, options_.checkpoint_bytes, stop, &report);
  BySize(kPurgedEvents, options_.event_count, stop, &report);
  if (report.logs + report.checkpoints + report.events > 0) {
    spdlog::info("retention: logs of {} jobs, checkpoints of {}, events of {} removed, {} bytes freed", report.logs,
                 report.checkpoints, report.events, report.bytes);
  }
  return report;
}

}  // namespace hone
