#include "engine/model/weight_stream.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "proto/base/status.h"

namespace hone {
namespace {

// Parts of a direct read; a multiple of every element's size.
constexpr uint64_t kDirectBytes = uint64_t{4} << 20;

}  // namespace

int ReaderThreads() {
  constexpr int kMost = 16;  // beyond, memory is the limit
  cpu_set_t set;
  const int usable = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::clamp(usable, 1, kMost);
}

WeightStream::WeightStream(const ModelFiles& files, std::vector<Item> items, std::span<std::byte> ring,
                           uint64_t part_bytes, int threads)
    : files_(files),
      items_(std::move(items)),
      ring_(ring),
      part_bytes_(part_bytes),
      slots_(ring.size() / part_bytes),
      full_(slots_, false) {
  HONE_CHECK(slots_ >= 2 && threads >= 1, ring.size(), " bytes of ring for parts of ", part_bytes);
  for (size_t item = 0; item < items_.size(); ++item) {
    for (uint64_t at = 0; at < items_[item].bytes; at += part_bytes) {
      jobs_.push_back({item, at, std::min(part_bytes, items_[item].bytes - at)});
    }
  }
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Read(); });
}

WeightStream::~WeightStream() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  freed_.notify_all();
  for (std::jthread& thread : threads_) thread.join();
}

void WeightStream::Read() {
  std::unique_lock lock(mutex_);
  while (true) {
    freed_.wait(lock, [&] { return stop_ || started_ == jobs_.size() || started_ < released_ + slots_; });
    if (stop_ || started_ == jobs_.size()) return;
    const size_t index = started_++, slot = index % slots_;
    const Job job = jobs_[index];
    lock.unlock();
    absl::Status status =
        files_.ReadPart(items_[job.item].name, job.offset, job.bytes, ring_.data() + slot * part_bytes_);
    lock.lock();
    full_[slot] = true;
    if (!status.ok() && status_.ok()) status_ = std::move(status), stop_ = true;
    filled_.notify_one();
    if (stop_) freed_.notify_all();
  }
}

absl::StatusOr<WeightStream::Part> WeightStream::Next() {
  std::unique_lock lock(mutex_);
  HONE_CHECK(taken_ < jobs_.size() && taken_ - released_ < slots_, taken_, " parts taken, ", released_, " released");
  const size_t slot = taken_ % slots_;
  filled_.wait(lock, [&] { return full_[slot] || !status_.ok(); });
  if (!status_.ok()) return status_;
  full_[slot] = false;
  const Job& job = jobs_[taken_++];
  return Part{job.item, job.offset, ring_.subspan(slot * part_bytes_, job.bytes)};
}

bool WeightStream::Ready() const {
  const std::lock_guard lock(mutex_);
  return full_[taken_ % slots_] || !status_.ok();
}

void WeightStream::Release(size_t count) {
  {
    const std::lock_guard lock(mutex_);
    HONE_CHECK(released_ + count <= taken_, count, " parts released, ", taken_ - released_, " are out");
    released_ += count;
  }
  freed_.notify_all();
}

absl::Status ReadInParallel(const ModelFiles& files, const std::string& name, uint64_t bytes, void* out, int threads) {
  std::atomic<uint64_t> next = 0;
  std::mutex mutex;
  absl::Status first;
  const auto read = [&] {
    for (uint64_t at = next.fetch_add(kDirectBytes); at < bytes; at = next.fetch_add(kDirectBytes)) {
      absl::Status status = files.ReadPart(name, at, std::min(kDirectBytes, bytes - at), static_cast<char*>(out) + at);
      if (status.ok()) continue;
      const std::lock_guard lock(mutex);
      if (first.ok()) first = std::move(status);
      return;
    }
  };
  {
    std::vector<std::jthread> helpers;
    const uint64_t parts = (bytes + kDirectBytes - 1) / kDirectBytes;
    for (uint64_t i = 1; i < std::min<uint64_t>(parts, static_cast<uint64_t>(threads)); ++i) helpers.emplace_back(read);
    read();
  }
  return first;
}

}  // namespace hone
