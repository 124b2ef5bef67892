#include "engine/io/checkpoint.h"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <fstream>

#include "tests/io/test_files.h"

namespace hone {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

class CheckpointTest : public testing::Test {
 protected:
  std::string Save(int64_t step, const std::string& content, int keep = 2) {
    const CheckpointPart parts[] = {{"adapter.bin", content}, {"empty", ""}};
    auto path = SaveCheckpoint(root_, step, {{"step", step}, {"text", content}}, parts, {.keep = keep});
    EXPECT_TRUE(path.ok()) << path.status();
    return path.ok() ? *path : "";
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(root_)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  TempFolder folder_;
  std::string root_ = folder_ / "checkpoints";
};

TEST_F(CheckpointTest, SavesAndLoads) {
  auto none = LoadNewestCheckpoint(root_);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->newest.has_value());
  Save(8, "eight");
  auto search = LoadNewestCheckpoint(root_);
  ASSERT_TRUE(search.ok()) << search.status();
  ASSERT_TRUE(search->newest.has_value());
  EXPECT_EQ(search->newest->step, 8);
  EXPECT_EQ(search->newest->state["text"], "eight");
  EXPECT_EQ(search->newest->parts.at("adapter.bin").bytes(), "eight");
  EXPECT_EQ(search->newest->parts.at("empty").bytes(), "");
  EXPECT_TRUE(search->damaged.empty());
}

TEST_F(CheckpointTest, KeepsTheNewestTwo) {
  for (int64_t step : {1, 2, 3, 10}) Save(step, "x");
  EXPECT_THAT(Names(), ElementsAre("step-000000000003", "step-000000000010"));
  Save(11, "x", 1);
  EXPECT_THAT(Names(), ElementsAre("step-000000000011"));
}

TEST_F(CheckpointTest, SameStepIsReplaced) {
  Save(1, "old");
  Save(1, "new");
  EXPECT_THAT(Names(), ElementsAre("step-000000000001"));
  EXPECT_EQ(LoadNewestCheckpoint(root_)->newest->state["text"], "new");
}

TEST_F(CheckpointTest, EveryFlippedByteIsDetectedAndTheOlderOneUsed) {
  Save(1, "first");
  const std::string path = Save(2, "second");
  int flips = 0;
  for (const auto& entry : fs::directory_iterator(path)) {
    const auto size = static_cast<int64_t>(fs::file_size(entry.path()));
    for (int64_t at = 0; at < size; at += 3) {
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      const char old = static_cast<char>(file.get());
      file.seekp(at);
      file.put(static_cast<char>(old ^ 0x20));
      file.flush();
      auto search = LoadNewestCheckpoint(root_);
      ASSERT_TRUE(search.ok()) << search.status();
      ASSERT_TRUE(search->newest.has_value());
      ASSERT_EQ(search->newest->step, 1) << entry.path() << " byte " << at;
      ASSERT_THAT(search->damaged, ElementsAre(HasSubstr("step-000000000002: ")));
      file.seekp(at);
      file.put(old);
      ++flips;
    }
  }
  EXPECT_GT(flips, 100);
  EXPECT_EQ(LoadNewestCheckpoint(root_)->newest->step, 2) << "mended";
}

// The size of a real one: the tiny model's adapter and its two optimiser states. One bit of every 4 KiB block of every
// file, another bit each time; the checkpoint is whole again after each.
TEST_F(CheckpointTest, OneBitInEachBlockIsDetectedAndTheOlderOneUsed) {
  std::string adapter(200'000, '\0'), first(200'000, '\0'), second(200'000, '\0');
  uint32_t random = 12345;
  for (std::string* part : {&adapter, &first, &second}) {
    for (char& c : *part) c = static_cast<char>((random = random * 1664525 + 1013904223) >> 24);
  }
  const CheckpointPart parts[] = {{"adapter.bin", adapter}, {"m.bin", first}, {"v.bin", second}};
  ASSERT_TRUE(SaveCheckpoint(root_, 1, {{"step", 1}}, parts).ok());
  const auto path = SaveCheckpoint(root_, 2, {{"step", 2}}, parts);
  ASSERT_TRUE(path.ok()) << path.status();
  constexpr int64_t kBlock = 4096;
  int blocks = 0, detected = 0;
  std::vector<std::string> flipped_files;
  for (const auto& entry : fs::directory_iterator(*path)) {
    flipped_files.push_back(entry.path().filename().string());
    const auto size = static_cast<int64_t>(fs::file_size(entry.path()));
    for (int64_t block = 0; block < size; block += kBlock) {
      random = random * 1664525 + 1013904223;
      const int64_t at = block + static_cast<int64_t>(random >> 8) % std::min(kBlock, size - block);
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      const char old = static_cast<char>(file.get());
      file.seekp(at);
      file.put(static_cast<char>(old ^ (1 << (blocks % 8))));
      file.flush();
      ASSERT_TRUE(file.good());
      const auto search = LoadNewestCheckpoint(root_);
      ASSERT_TRUE(search.ok()) << search.status();
      const bool found = search->newest.has_value() && search->newest->step == 1 && search->damaged.size() == 1;
      EXPECT_TRUE(found) << entry.path() << " byte " << at << " bit " << blocks % 8;
      ++blocks, detected += found;
      file.seekp(at);
      file.put(old);
    }
  }
  EXPECT_THAT(flipped_files,
              testing::UnorderedElementsAre("adapter.bin", "m.bin", "v.bin", "state.json", "manifest.json"));
  EXPECT_EQ(blocks, 3 * 49 + 2);
  std::printf("one bit flipped in each of %d blocks of 4 KiB: %d detected, the older checkpoint used\n", blocks,
              detected);
  EXPECT_EQ(detected, blocks);
  EXPECT_EQ(LoadNewestCheckpoint(root_)->newest->step, 2) << "mended";
}

TEST_F(CheckpointTest, MissingShortAndForeignFiles) {
  Save(1, "first");
  const std::string path = Save(2, "second");
  std::ofstream(path + "/adapter.bin") << "sec";
  EXPECT_THAT(LoadNewestCheckpoint(root_)->damaged, ElementsAre(HasSubstr("3 bytes, the manifest says 6")));
  fs::remove(path + "/adapter.bin");
  EXPECT_THAT(LoadNewestCheckpoint(root_)->damaged, ElementsAre(HasSubstr("adapter.bin")));
  fs::remove(path + "/manifest.json");
  EXPECT_EQ(LoadNewestCheckpoint(root_)->newest->step, 1);
  fs::remove_all(path);
  fs::copy(root_ + "/step-000000000001", root_ + "/step-000000000009", fs::copy_options::recursive);
  EXPECT_THAT(LoadNewestCheckpoint(root_)->damaged, ElementsAre(HasSubstr("manifest is that of step 1")));
  std::ofstream(root_ + "/notes.txt") << "kept";
  EXPECT_EQ(LoadNewestCheckpoint(root_)->newest->step, 1);
  EXPECT_TRUE(fs::exists(root_ + "/notes.txt"));
}

TEST_F(CheckpointTest, SavingAfterFallbackRemovesTheDamagedOnes) {
  Save(1, "first");
  const std::string damaged = Save(5, "fifth");
  fs::remove(damaged + "/manifest.json");
  ASSERT_EQ(LoadNewestCheckpoint(root_)->newest->step, 1);
  Save(3, "third");
  EXPECT_THAT(Names(), ElementsAre("step-000000000001", "step-000000000003"));
}

TEST_F(CheckpointTest, LeftOversOfACrashAreRemoved) {
  Save(1, "first");
  fs::create_directories(root_ + "/.tmp-step-000000000002-AbCdEf");
  std::ofstream(root_ + "/.tmp-step-000000000002-AbCdEf/state.json") << "{";
  EXPECT_EQ(LoadNewestCheckpoint(root_)->newest->step, 1);
  EXPECT_THAT(Names(), ElementsAre("step-000000000001"));
}

// A limit on the size of files stands for a full disk: the write fails half-way through a checkpoint.
TEST_F(CheckpointTest, FailureLeavesOlderOnesAlone) {
  Save(1, "first");
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string large(100000, 'x');
  const CheckpointPart parts[] = {{"small", "x"}, {"large", large}};
  const auto saved = SaveCheckpoint(root_, 2, {}, parts);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(saved.ok());
  EXPECT_THAT(Names(), ElementsAre("step-000000000001")) << "no temporary folder stays";
  EXPECT_EQ(LoadNewestCheckpoint(root_)->newest->step, 1);
}

TEST_F(CheckpointTest, StateThatIsNoJsonIsAnError) {
  Save(1, "first");
  EXPECT_FALSE(SaveCheckpoint(root_, 2, {{"text", "\xff"}}, {}).ok());
  EXPECT_THAT(Names(), ElementsAre("step-000000000001"));
}

TEST_F(CheckpointTest, NamesAreChecked) {
  for (const char* name : {"", "a/b", "../a", ".hidden", "state.json", "manifest.json", "a b"}) {
    const CheckpointPart parts[] = {{name, "x"}};
    EXPECT_THROW((void)SaveCheckpoint(root_, 1, {}, parts), InvariantError) << name;
  }
}

TEST(CheckpointManifest, HostileTexts) {
  const CheckpointManifest good{.step = 3, .files = {{"a", 1, std::string(64, 'a')}}};
  ASSERT_TRUE(ParseManifest(WriteManifest(good)).ok());
  EXPECT_FALSE(ParseManifest("").ok());
  EXPECT_FALSE(ParseManifest("{}").ok());
  EXPECT_FALSE(ParseManifest("[]").ok());
  EXPECT_THAT(ErrorOf(ParseManifest(WriteManifest(good) + " ")), HasSubstr("SHA-256 differs"));
  CheckpointManifest bad = good;
  bad.files[0].name = "../../etc/passwd";
  EXPECT_THAT(ErrorOf(ParseManifest(WriteManifest(bad))), HasSubstr("plain name"));
  bad = good;
  bad.files.push_back(bad.files[0]);
  EXPECT_THAT(ErrorOf(ParseManifest(WriteManifest(bad))), HasSubstr("twice"));
  bad = good;
  bad.step = -1;
  EXPECT_THAT(ErrorOf(ParseManifest(WriteManifest(bad))), HasSubstr("step"));
}

}  // namespace
}  // namespace hone
