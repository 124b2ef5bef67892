// Loading a model: what reaches the arenas is what the files hold, whatever the sizes of ring and parts; failures while
// reading are errors; a dry load takes the memory of the real one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>

#include "engine/io/model_files.h"
#include "engine/io/nf4.h"
#include "engine/model/model.h"
#include "engine/model/weight_stream.h"
#include "kernels/backend.h"
#include "kernels/dry/dry_ops.h"
#include "proto/base/status.h"

namespace hone {
namespace {

namespace fs = std::filesystem;

std::string Golden(const std::string& name) { return std::string(HONE_GOLDEN) + "/io/" + name; }

std::unique_ptr<ModelFiles> OpenFiles(const std::string& source) {
  auto files = ModelFiles::Open(source);
  EXPECT_TRUE(files.ok()) << files.status();
  return *std::move(files);
}

std::vector<WeightStream::Item> AllItems(const ModelFiles& files) {
  std::vector<WeightStream::Item> items;
  for (const std::string& name : files.names()) items.push_back({name, files.Describe(name)->bytes});
  return items;
}

std::vector<std::byte> ReadElements(const ModelFiles& files, const std::string& name) {
  const StoredWeight stored = *files.Describe(name);
  std::vector<std::byte> bytes(stored.bytes);
  std::vector<uint8_t> codes(stored.blocks);
  std::vector<float> code(256), nested(stored.nested_blocks), absmax(stored.blocks);
  float offset = 0;
  EXPECT_TRUE(files.Read(name, {bytes.data(), codes.data(), code.data(), nested.data(), &offset, absmax.data()}).ok());
  return bytes;
}

class Sources : public testing::TestWithParam<const char*> {
 protected:
  static std::unique_ptr<ModelFiles> OpenParam() {
    const std::string name = GetParam();
    return OpenFiles(name.starts_with("random:") ? "random:" + Golden(name.substr(7)) : Golden(name));
  }
};

TEST_P(Sources, StreamGivesEveryByteInOrder) {
  const auto files = OpenParam();
  for (uint64_t part_bytes : {64, 1000, 1 << 20}) {
    std::vector<std::byte> ring(part_bytes * 3);
    WeightStream stream(*files, AllItems(*files), ring, part_bytes, 3);
    size_t out = 0;
    for (const WeightStream::Item& item : stream.items()) {
      std::vector<std::byte> got;
      while (got.size() < item.bytes) {
        if (out == 3) stream.Release(std::exchange(out, 0));
        const auto part = stream.Next();
        ASSERT_TRUE(part.ok()) << part.status();
        EXPECT_EQ(stream.items()[part->item].name, item.name);
        ASSERT_EQ(part->offset, got.size());
        got.insert(got.end(), part->bytes.begin(), part->bytes.end());
        ++out;
      }
      EXPECT_EQ(got, ReadElements(*files, item.name)) << item.name << " in parts of " << part_bytes;
    }
  }
}

TEST_P(Sources, ParallelReadGivesEveryByte) {
  const auto files = OpenParam();
  for (const std::string& name : files->names()) {
    std::vector<std::byte> got(files->Describe(name)->bytes);
    ASSERT_TRUE(ReadInParallel(*files, name, got.size(), got.data(), 3).ok());
    EXPECT_EQ(got, ReadElements(*files, name)) << name;
  }
}

std::vector<float> Decoded(Ops& ops, const WeightView& view) {
  std::vector<float> values(static_cast<size_t>(view.rows * view.cols));
  ops.DecodeWeight(view, {values.data(), DType::kF32, view.rows, view.cols, view.cols});
  return values;
}

// What the loader is to leave on the device.
std::vector<float> Expected(const ModelFiles& files, const std::string& name, bool quantised) {
  const StoredWeight stored = *files.Describe(name);
  std::vector<float> values(static_cast<size_t>(stored.rows * stored.cols));
  EXPECT_TRUE(files.ReadAsFloat(name, values.data()).ok());
  if (!quantised || stored.dtype == DType::kNf4) return values;
  const Nf4Sizes sizes = Nf4SizesOf(values.size());
  std::vector<uint8_t> codes(sizes.code_bytes), absmax_codes(sizes.blocks);
  std::vector<float> nested(sizes.nested_blocks), absmax(sizes.blocks);
  Nf4Parts parts{codes.data(), absmax_codes.data(), nested.data(), 0};
  EncodeNf4(values.data(), values.size(), parts);
  DecodeNf4Absmax(absmax_codes.data(), Nf4DynamicMap().data(), nested.data(), parts.nested_offset, sizes.blocks,
                  absmax.data());
  DecodeNf4(codes.data(), absmax.data(), values.size(), values.data());
  return values;
}

TEST_P(Sources, LoadedWeightsAreTheFiles) {
  const auto files = OpenParam();
  const auto backend = OpenCpu({.threads = 2}).value();
  const auto dry_ops = MakeDryOps(BackendKind::kCpu, DType::kF32);
  for (const WeightQuantization quantization : {WeightQuantization::kNone, WeightQuantization::kNf4}) {
    for (const bool apart : {false, true}) {
      Arena dry = Arena::Dry("weights"), dry_staging = Arena::Dry("staging");
      ModelPlacement placement;
      placement.quantization = quantization;
      ASSERT_TRUE(Model::Load(*files, placement, *dry_ops, {&dry, nullptr, apart ? &dry_staging : nullptr}).ok());
      const auto block = backend->Reserve(dry.high_water()).value();
      const auto staging_block = backend->Reserve(dry_staging.high_water()).value();
      Arena weights("weights", block->data(), dry.high_water());
      Arena staging("staging", staging_block->data(), dry_staging.high_water());
      int64_t reported = 0;
      const auto model = Model::Load(*files, placement, backend->ops(), {&weights, nullptr, apart ? &staging : nullptr},
                                     [&](int64_t done, int64_t) { EXPECT_EQ(done, ++reported); });
      ASSERT_TRUE(model.ok()) << model.status();
      EXPECT_EQ(reported, files->config().num_layers);
      EXPECT_EQ(weights.high_water(), dry.high_water());
      EXPECT_EQ(staging.high_water(), dry_staging.high_water());
      EXPECT_EQ(staging.used(), 0u);

      for (int64_t layer = 0; layer < files->config().num_layers; ++layer) {
        for (int kind = 0; kind < kLinearKinds; ++kind) {
          const std::string name = LinearModuleName(layer, static_cast<LinearKind>(kind)) + ".weight";
          EXPECT_EQ(Decoded(backend->ops(), (*model)->Acquire(layer)->linear[kind]),
                    Expected(*files, name, quantization == WeightQuantization::kNf4))
              << name;
        }
      }
      EXPECT_EQ(Decoded(backend->ops(), (*model)->embedding()), Expected(*files, "model.embed_tokens.weight", false));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Sources,
                         testing::Values("llama", "qwen2_sharded", "llama.gguf", "llama_nf4",
                                         "random:llama/config.json"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
                           return name;
                         });

TEST(Load, EmbeddingOnTheHost) {
  const auto files = OpenFiles(Golden("llama"));
  const auto backend = OpenCpu({.threads = 2}).value();
  const auto block = backend->Reserve(1 << 20).value(), pinned_block = backend->ReservePinned(1 << 16).value();
  Arena weights("weights", block->data(), 1 << 20), pinned("pinned", pinned_block->data(), 1 << 16);
  ModelPlacement placement;
  placement.embedding_on_host = true;
  const auto model = Model::Load(*files, placement, backend->ops(), {&weights, &pinned}).value();
  EXPECT_EQ(Decoded(backend->ops(), model->embedding()), Expected(*files, "model.embed_tokens.weight", false));
  EXPECT_EQ(model->embedding().data, pinned_block->data());
}

// A folder of our own, so that its file can be cut while it is open.
TEST(Load, AFileThatBecomesShorterIsAnErrorThatNamesIt) {
  const fs::path folder = fs::temp_directory_path() / StrCat("hone_load_test_", ::getpid());
  fs::remove_all(folder);
  fs::copy(Golden("llama"), folder);
  const auto files = OpenFiles(folder.string());
  const fs::path file = folder / "model.safetensors";
  const auto whole = fs::file_size(file);
  fs::resize_file(file, whole - 2000);
  const auto items = AllItems(*files);
  std::vector<std::byte> ring(4096);
  absl::Status status;
  {
    WeightStream stream(*files, items, ring, 1024, 2);
    for (int i = 0; i < 1000 && status.ok(); ++i) {
      const auto part = stream.Next();
      status = part.status();
      if (part.ok()) stream.Release(1);
    }
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("model.safetensors"));
  size_t failed = 0;
  for (const WeightStream::Item& item : items) {
    std::vector<std::byte> out(item.bytes);
    const absl::Status read = ReadInParallel(*files, item.name, item.bytes, out.data(), 2);
    EXPECT_TRUE(read.ok() || read.code() == absl::StatusCode::kDataLoss) << read;
    failed += !read.ok();
  }
  EXPECT_GT(failed, 0u);
  EXPECT_LT(failed, items.size());
  fs::remove_all(folder);
}

// Stopping early must not wait for what nobody will take.
TEST(Load, AStreamEndsBeforeItsWeights) {
  const auto files = OpenFiles("random:" + Golden("llama/config.json"));
  std::vector<std::byte> ring(4096);
  WeightStream stream(*files, AllItems(*files), ring, 1024, 4);
  EXPECT_TRUE(stream.Next().ok());
}

// The values of `random:` as they were first defined, one by one: jobs made with them must stay reproducible.
TEST(Load, RandomValuesStay) {
  const auto mix = [](uint64_t x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  };
  const auto files = OpenFiles("random:" + Golden("llama/config.json"));
  for (const std::string& name : files->names()) {
    uint64_t key = 0xCBF29CE484222325ull;
    for (char c : name) key = (key ^ static_cast<uint8_t>(c)) * 0x100000001B3ull;
    key = mix(key);
    const StoredWeight stored = *files->Describe(name);
    ASSERT_EQ(stored.dtype, DType::kBF16);
    std::vector<float> got(static_cast<size_t>(stored.rows * stored.cols));
    ASSERT_TRUE(files->ReadAsFloat(name, got.data()).ok());
    for (size_t i = 0; i < got.size(); ++i) {
      const uint64_t bits = mix(key ^ mix(i));
      const int64_t sum =
          static_cast<int64_t>((bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48));
      volatile float normal = static_cast<float>(sum - 131070) * (1.0f / 37837.227f);
      volatile float scaled = 0.02f * normal;  // two roundings
      const float value = (name.ends_with("norm.weight") ? 1.0f : 0.0f) + scaled;
      uint32_t word;
      std::memcpy(&word, &value, 4);
      word = (word + 0x7FFF + (word >> 16 & 1)) & 0xFFFF0000u;
      float rounded;
      std::memcpy(&rounded, &word, 4);
      ASSERT_EQ(got[i], rounded) << name << "[" << i << "]";
    }
  }
}

}  // namespace
}  // namespace hone
