#include "proto/base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

namespace hone {
namespace {

namespace fs = std::filesystem;

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/hone_file_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string Path(const std::string& name) const { return dir_ + "/" + name; }
  size_t Entries() const { return std::distance(fs::directory_iterator(dir_), fs::directory_iterator()); }
  std::string dir_;
};

TEST_F(FileTest, WritesReadsAndReplaces) {
  const std::string bytes("a\0b\n", 4);
  ASSERT_TRUE(WriteFileDurably(Path("x"), bytes).ok());
  EXPECT_EQ(ReadFile(Path("x")).value(), bytes);
  ASSERT_TRUE(WriteFileDurably(Path("x"), "new").ok());
  EXPECT_EQ(ReadFile(Path("x")).value(), "new");
  EXPECT_EQ(Entries(), 1u) << "no temporary file stays";
  ASSERT_TRUE(WriteFileDurably(Path("empty"), "").ok());
  EXPECT_EQ(ReadFile(Path("empty")).value(), "");
}

TEST_F(FileTest, FailedWriteLeavesTheOldThing) {
  ASSERT_TRUE(MakeDirectories(Path("folder/inner")).ok());
  EXPECT_FALSE(WriteFileDurably(Path("folder"), "bytes").ok());  // rename onto a folder fails
  EXPECT_TRUE(fs::is_directory(Path("folder/inner")));
  EXPECT_EQ(Entries(), 1u) << "no temporary file stays";
  const absl::Status missing = WriteFileDurably(Path("no/such/file"), "bytes");
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(missing.message()).find("no/such/file"), std::string::npos) << missing;
}

TEST_F(FileTest, ReadIsBounded) {
  ASSERT_TRUE(WriteFileDurably(Path("x"), "12345").ok());
  EXPECT_EQ(ReadFile(Path("x"), 5).value(), "12345");
  const absl::Status status = ReadFile(Path("x"), 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(status.message()).find("limit of 4 bytes"), std::string::npos) << status;
}

TEST_F(FileTest, RefusesWhatIsNotARegularFile) {
  ASSERT_EQ(::mkfifo(Path("fifo").c_str(), 0600), 0);
  EXPECT_FALSE(ReadFile(Path("fifo")).ok());  // and does not hang
  EXPECT_FALSE(MappedFile::Open(Path("fifo")).ok());
  EXPECT_FALSE(ReadFile(dir_).ok());
  EXPECT_FALSE(MappedFile::Open(dir_).ok());
  EXPECT_EQ(ReadFile(Path("none")).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(FileTest, ReadsFilesThatSayTheyAreEmpty) {
  auto text = ReadFile("/proc/self/status");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_NE(text->find("Pid:"), std::string::npos);
}

TEST_F(FileTest, Maps) {
  ASSERT_TRUE(WriteFileDurably(Path("x"), "12345").ok());
  ASSERT_TRUE(WriteFileDurably(Path("empty"), "").ok());
  auto mapped = MappedFile::Open(Path("x"));
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_EQ(mapped->bytes(), "12345");
  MappedFile moved = *std::move(mapped);
  EXPECT_EQ(moved.bytes(), "12345");
  MappedFile target = MappedFile::Open(Path("empty")).value();
  EXPECT_EQ(target.bytes(), "");
  target = std::move(moved);
  EXPECT_EQ(target.bytes(), "12345");
  EXPECT_EQ(target.path(), Path("x"));
}

TEST_F(FileTest, MakesDirectories) {
  EXPECT_TRUE(MakeDirectories(Path("a/b/c")).ok());
  EXPECT_TRUE(MakeDirectories(Path("a/b/c/")).ok()) << "again, with a slash at the end";
  EXPECT_TRUE(fs::is_directory(Path("a/b/c")));
  ASSERT_TRUE(WriteFileDurably(Path("a/file"), "").ok());
  EXPECT_EQ(MakeDirectories(Path("a/file/b")).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(MakeDirectories("").ok());
  EXPECT_TRUE(FsyncDirectory(Path("a")).ok());
  EXPECT_TRUE(FsyncFile(Path("a/file")).ok());
  EXPECT_FALSE(FsyncDirectory(Path("a/file")).ok());
}

}  // namespace
}  // namespace hone
