// The safetensors format: u64 header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, then
// the bytes of the tensors. Reading maps the file and trusts nothing: the header is bounded, every size is checked, and
// the tensors must tile the data exactly. Not here: what a tensor means to a model (model_files.h).
//
// Errors name the file, the tensor and the byte offset.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "proto/base/file.h"

namespace hone {

inline constexpr uint64_t kSafetensorsMaxHeaderBytes = uint64_t{16} << 20;
inline constexpr size_t kSafetensorsMaxTensors = 65536;

struct SafetensorsTensor {
  std::string name;
  std::string type;            // as the file spells it: "F32", "BF16", "I64", "F8_E4M3", ...
  std::optional<DType> dtype;  // where it is one that Hone knows (F32 F16 BF16 I32 U8)
  std::vector<int64_t> shape;  // [] is a scalar
  uint64_t elements = 0;
  std::string_view bytes;  // into the mapping
};

class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);
  // The same checks on bytes that the caller keeps alive; `name` stands for the path in errors.
  static absl::StatusOr<SafetensorsFile> Parse(std::string_view bytes, const std::string& name);

  const SafetensorsTensor* Find(std::string_view name) const;                 // nullptr: none
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // in order of their bytes
  // __metadata__: strings of a stranger. Never interpreted; escape them (EscapeForDisplay) when they are shown.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }
  std::string_view header() const { return header_; }  // the JSON text
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  MappedFile file_;
  std::string path_;
  std::string_view header_;
  uint64_t file_bytes_ = 0;
  std::vector<SafetensorsTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

// The safetensors of a folder: model.safetensors, or the files that model.safetensors.index.json names (all of them
// inside the folder: plain file names only).
class SafetensorsDirectory {
 public:
  static absl::StatusOr<SafetensorsDirectory> Open(const std::string& directory);
  const SafetensorsTensor* Find(std::string_view name) const;
  const std::vector<SafetensorsFile>& files() const { return files_; }

 private:
  std::vector<SafetensorsFile> files_;
};

// Writes one file: temporary file beside it, every tensor exactly once in any order, then Finish: fsync, rename, fsync
// of the folder. The layout does not depend on the order of declaration (by dtype size descending, then by name), so
// equal content gives equal bytes. Destroyed before Finish it leaves nothing behind.
class SafetensorsWriter {
 public:
  struct Declaration {
    std::string name;
    DType dtype = DType::kF32;  // a plain type
    std::vector<int64_t> shape;
  };
  // metadata {"format": "pt"} is what Hugging Face libraries insist on; it is added if there is no "format".
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path,
                                                                   std::vector<Declaration> tensors,
                                                                   std::map<std::string, std::string> metadata = {});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // All bytes of one tensor.
  absl::Status Write(std::string_view name, std::string_view bytes);
  // A part of one tensor, starting `offset` bytes into it; parts must follow each other.
  absl::Status WritePart(std::string_view name, uint64_t offset, std::string_view bytes);
  absl::Status Finish();
  uint64_t file_bytes() const;

 private:
  struct State;
  explicit SafetensorsWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Text of a stranger made harmless for a terminal or a log: control characters, ESC, quotes and invalid UTF-8 as \xNN,
// cut to max_bytes with "...".
std::string EscapeForDisplay(std::string_view text, size_t max_bytes = 200);

}  // namespace hone
