// Times loading a model to a card. Two verbs:
//   cuda_load_bench make DIR/config.json OUT [SHARDS]   a Hugging Face folder with random bf16 weights of that shape
//   cuda_load_bench load SOURCE [none|nf4] [drop]       SOURCE as a job names it; drop: its files leave the page cache
// `load` prints the ceilings beside the time: the same reads without a card, and the link alone.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/io/model_files.h"
#include "engine/io/model_source.h"
#include "engine/model/model.h"
#include "engine/model/weight_stream.h"
#include "kernels/backend.h"
#include "kernels/dry/dry_ops.h"
#include "proto/base/status.h"

namespace hone {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
double Since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

template <typename T>
T Get(absl::StatusOr<T> value) {
  HONE_CHECK(value.ok(), value.status().ToString());
  return *std::move(value);
}

void WriteAll(int fd, const char* data, uint64_t bytes) {
  while (bytes > 0) {
    const ssize_t wrote = ::write(fd, data, std::min<uint64_t>(bytes, 1 << 30));
    HONE_CHECK(wrote > 0, "writing failed");
    data += wrote, bytes -= static_cast<uint64_t>(wrote);
  }
}

// One shard: the header, then every weight.
void WriteShard(const ModelFiles& files, const std::vector<std::string>& names, const fs::path& path) {
  std::string json = "{";
  uint64_t at = 0;
  for (const std::string& name : names) {
    const StoredWeight weight = Get(files.Describe(name));
    const std::string shape = IsVector(name) ? StrCat(weight.cols) : StrCat(weight.rows, ",", weight.cols);
    json += StrCat(at == 0 ? "" : ",", "\"", name, "\":{\"dtype\":\"BF16\",\"shape\":[", shape, "],\"data_offsets\":[",
                   at, ",", at + weight.bytes, "]}");
    at += weight.bytes;
  }
  json += "}";
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  HONE_CHECK(fd >= 0, path.string());
  const uint64_t length = json.size();
  WriteAll(fd, reinterpret_cast<const char*>(&length), 8);
  WriteAll(fd, json.data(), json.size());
  constexpr uint64_t kPart = 8 << 20;
  std::vector<char> part(kPart);
  for (const std::string& name : names) {
    const uint64_t bytes = Get(files.Describe(name)).bytes;
    for (uint64_t done = 0; done < bytes; done += kPart) {
      const uint64_t count = std::min(kPart, bytes - done);
      HONE_CHECK(files.ReadPart(name, done, count, part.data()).ok());
      WriteAll(fd, part.data(), count);
    }
  }
  ::close(fd);
}

void Make(const std::string& config, const std::string& out, int shards) {
  const auto files = Get(ModelFiles::Open("random:" + config));
  fs::create_directories(out);
  fs::copy_file(config, fs::path(out) / "config.json", fs::copy_options::overwrite_existing);
  std::vector<std::vector<std::string>> parts(static_cast<size_t>(shards));
  const auto& names = files->names();
  for (size_t i = 0; i < names.size(); ++i) parts[i * parts.size() / names.size()].push_back(names[i]);
  std::ofstream index(fs::path(out) / "model.safetensors.index.json");
  index << "{\"weight_map\":{";
  const char* comma = "";
  const auto begin = Clock::now();
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < parts.size(); ++i) {
      const std::string file = StrCat("model-", i + 1, "-of-", parts.size(), ".safetensors");
      for (const std::string& name : parts[i]) {
        index << comma << "\"" << name << "\":\"" << file << "\"";
        comma = ",";
      }
      threads.emplace_back([&, i, file] { WriteShard(*files, parts[i], fs::path(out) / file); });
    }
  }
  index << "}}";
  std::printf("made %s in %.1f s\n", out.c_str(), Since(begin));
}

void DropCache(const std::string& source) {
  for (const auto& entry : fs::directory_iterator(source)) {
    const int fd = ::open(entry.path().c_str(), O_RDONLY);
    if (fd < 0) continue;
    ::fdatasync(fd);
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

std::vector<WeightStream::Item> Matrices(const ModelFiles& files) {
  std::vector<WeightStream::Item> items;
  for (const std::string& name : files.names()) {
    if (!IsVector(name)) items.push_back({name, Get(files.Describe(name)).bytes});
  }
  return items;
}

// The same parts by the same threads, thrown away.
double ReadOnly(const ModelFiles& files, std::span<std::byte> ring) {
  const auto begin = Clock::now();
  uint64_t bytes = 0, total = 0;
  const auto items = Matrices(files);
  for (const auto& item : items) total += item.bytes;
  WeightStream stream(files, items, ring, uint64_t{8} << 20, ReaderThreads());
  while (bytes < total) {
    bytes += Get(stream.Next()).bytes.size();
    stream.Release(1);
  }
  return static_cast<double>(total) / Since(begin) / 1e9;
}

double LinkRate(Backend& backend, std::span<std::byte> ring, Arena& arena) {
  ArenaScope scope(arena);
  const auto count = static_cast<int64_t>(std::min<uint64_t>(ring.size(), uint64_t{64} << 20));
  const Tensor out = arena.AllocateTensor(DType::kU8, 1, count);
  backend.ops().Upload(ring.data(), out);
  backend.ops().Synchronize();
  const auto begin = Clock::now();
  for (int i = 0; i < 32; ++i) backend.ops().Upload(ring.data(), out);
  backend.ops().Synchronize();
  return 32.0 * static_cast<double>(count) / Since(begin) / 1e9;
}

void Load(const std::string& source, bool nf4, bool drop) {
  auto begin = Clock::now();
  const auto backend = Get(CudaBuilt() ? OpenCuda() : OpenCpu());
  const double opened = Since(begin);
  begin = Clock::now();
  const auto files = Get(ModelFiles::Open(source));
  const double files_opened = Since(begin);
  ModelPlacement placement;
  placement.quantization = nf4 ? WeightQuantization::kNf4 : WeightQuantization::kNone;
  Arena dry = Arena::Dry("weights"), dry_staging = Arena::Dry("staging");
  const auto dry_ops = MakeDryOps(backend->ops().backend(), backend->ops().activation_dtype());
  HONE_CHECK(Model::Load(*files, placement, *dry_ops, {&dry, nullptr, &dry_staging}).ok());
  begin = Clock::now();
  const auto block = Get(backend->Reserve(dry.high_water()));
  const auto staging_block = Get(backend->Reserve(std::max<uint64_t>(dry_staging.high_water(), 64 << 20)));
  const double reserved = Since(begin);
  begin = Clock::now();
  const auto ring_block = Get(backend->ReservePinned(kLoadRingBytes));
  const double pinned = Since(begin);
  const std::span<std::byte> ring(static_cast<std::byte*>(ring_block->data()), kLoadRingBytes);
  Arena weights("weights", block->data(), dry.high_water());
  Arena staging("staging", staging_block->data(), staging_block->size());
  const double link = LinkRate(*backend, ring, staging);
  if (drop) DropCache(source);
  const double read = ReadOnly(*files, ring);
  if (drop) DropCache(source);
  uint64_t bytes = 0;
  for (const auto& item : Matrices(*files)) bytes += item.bytes;
  begin = Clock::now();
  const auto model = Model::Load(*files, placement, backend->ops(), {&weights, nullptr, &staging, ring});
  HONE_CHECK(model.ok(), model.status().ToString());
  backend->ops().Synchronize();
  const double loaded = Since(begin), rate = static_cast<double>(bytes) / loaded / 1e9;
  std::printf(
      "%s, %s, %d readers%s: %.2f GB in %.2f s = %.1f GB/s; reads alone %.1f, link alone %.1f GB/s: %.0f%% of "
      "the lower\n",
      source.c_str(), nf4 ? "nf4" : "as stored", ReaderThreads(), drop ? ", out of the cache" : "",
      static_cast<double>(bytes) / 1e9, loaded, rate, read, link, 100 * rate / std::min(read, link));
  std::printf(
      "  on %s; back end %.2f s, files %.2f s, memory %.2f s, page-locked ring %.3f s; weights %.0f MiB, staging "
      "%.0f MiB\n",
      backend->name().c_str(), opened, files_opened, reserved, pinned,
      static_cast<double>(dry.high_water()) / (1 << 20), static_cast<double>(dry_staging.high_water()) / (1 << 20));
  std::fflush(stdout);
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  try {
    if (args.size() >= 3 && args[0] == "make") {
      hone::Make(args[1], args[2], args.size() > 3 ? std::stoi(args[3]) : 8);
    } else if (args.size() >= 2 && args[0] == "load") {
      hone::Load(args[1], args.size() > 2 && args[2] == "nf4", args.size() > 3 && args[3] == "drop");
    } else {
      std::fprintf(stderr, "make CONFIG OUT [SHARDS] | load SOURCE [none|nf4] [drop]\n");
      return 2;
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
