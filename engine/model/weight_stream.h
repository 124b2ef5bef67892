// Reads a model's weights ahead of their use: threads fill a ring of buffers with the parts of the weights in one
// order, the loader takes them in that order. Bounded memory, whatever the model's size. Not here: where the weights
// go.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/io/model_files.h"

namespace hone {

class WeightStream {
 public:
  struct Item {
    std::string name;
    uint64_t bytes = 0;  // of its elements (StoredWeight::bytes)
  };
  struct Part {
    size_t item = 0;
    uint64_t offset = 0;  // in the item
    std::span<const std::byte> bytes;
  };
  // `ring` and `files` outlive this. At least two parts fit in the ring.
  WeightStream(const ModelFiles& files, std::vector<Item> items, std::span<std::byte> ring, uint64_t part_bytes,
               int threads);
  ~WeightStream();
  WeightStream(const WeightStream&) = delete;
  WeightStream& operator=(const WeightStream&) = delete;

  const std::vector<Item>& items() const { return items_; }
  // The next part; waits until it was read. Parts taken and not released are at most slots().
  absl::StatusOr<Part> Next();
  bool Ready() const;          // Next would not wait
  void Release(size_t count);  // the oldest `count` parts taken may be overwritten
  size_t slots() const { return slots_; }

 private:
  struct Job {
    size_t item;
    uint64_t offset, bytes;
  };
  void Read();

  const ModelFiles& files_;
  const std::vector<Item> items_;
  std::span<std::byte> ring_;
  const uint64_t part_bytes_;
  const size_t slots_;
  std::vector<Job> jobs_;

  mutable std::mutex mutex_;
  std::condition_variable freed_, filled_;
  std::vector<bool> full_;  // by slot
  absl::Status status_;     // the first failure
  size_t started_ = 0, taken_ = 0, released_ = 0;
  bool stop_ = false;
  std::vector<std::jthread> threads_;  // last: they use all of the above
};

// One weight's elements, by several threads at once, straight to where they stay.
absl::Status ReadInParallel(const ModelFiles& files, const std::string& name, uint64_t bytes, void* out, int threads);

// Threads that reading a model is worth on this machine.
int ReaderThreads();

}  // namespace hone
