// GGUF files, version 3, little-endian: magic, counts, typed metadata, tensor list, aligned data. Reading maps the file
// and trusts nothing: counts, string lengths, alignment and offsets are checked before anything is allocated; tensors
// lie inside the file and do not overlap. Not here: what keys and names mean to a model (gguf_config.h, model_files.h).
//
// Errors name the file, the key or tensor and the byte offset.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "proto/base/file.h"

namespace hone {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
std::string_view GgufTypeName(GgufType type);

struct GgufArray {
  GgufType element = GgufType::kU8;  // never kArray: nested arrays are refused
  uint64_t count = 0;
  std::string_view raw;                   // numbers, unaligned
  std::vector<std::string_view> strings;  // kString
};

struct GgufValue {
  GgufType type = GgufType::kU8;
  // Unsigned types, signed types, floats, kBool, kString, kArray.
  std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray> value;
  uint64_t offset = 0;  // of the value in the file
};

struct GgufTensor {
  std::string name;
  uint32_t type = 0;           // ggml's number
  std::string type_name;       // "Q4_1", "Q6_K", "type 99"
  std::optional<DType> dtype;  // F32 F16 BF16 Q8_0 Q4_0 Q4_1; otherwise the tensor cannot be read
  std::vector<int64_t> shape;  // row-major as everywhere in Hone: [rows, cols] (the file stores it reversed)
  std::string_view bytes;      // empty where the size of the type is not known
  uint64_t offset = 0;         // in the file
};

class GgufFile {
 public:
  static absl::StatusOr<GgufFile> Open(const std::string& path);
  static absl::StatusOr<GgufFile> Parse(std::string_view bytes, const std::string& name);

  const GgufTensor* Find(std::string_view name) const;
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }  // in file order
  const std::string& path() const { return path_; }
  std::string_view header() const { return header_; }  // everything before the tensors' data
  uint64_t file_bytes() const { return file_bytes_; }

  // Typed access. A missing key is NotFound, another type InvalidArgument; both name the key. Integers of any width
  // convert if the value fits.
  bool Has(std::string_view key) const;
  const GgufValue* FindValue(std::string_view key) const;
  absl::StatusOr<std::string> String(std::string_view key) const;
  absl::StatusOr<int64_t> Integer(std::string_view key) const;
  absl::StatusOr<double> Float(std::string_view key) const;  // integers too
  absl::StatusOr<bool> Bool(std::string_view key) const;
  absl::StatusOr<std::vector<std::string>> Strings(std::string_view key) const;
  absl::StatusOr<std::vector<int32_t>> Integers(std::string_view key) const;
  absl::StatusOr<std::vector<float>> Floats(std::string_view key) const;

 private:
  friend class GgufParser;
  MappedFile file_;
  std::string path_;
  std::string_view header_;
  uint64_t file_bytes_ = 0;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::unordered_map<std::string, size_t> keys_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> names_;
};

// Writes a GGUF v3 file, alignment 32: metadata and tensors are declared, Begin writes the header to a temporary file,
// then every tensor is written once in any order; Finish makes it durable and visible.
class GgufWriter {
 public:
  GgufWriter();
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  void AddString(std::string_view key, std::string_view value);
  void AddU32(std::string_view key, uint32_t value);
  void AddF32(std::string_view key, float value);
  void AddBool(std::string_view key, bool value);
  void AddStrings(std::string_view key, const std::vector<std::string>& values);
  void AddI32s(std::string_view key, const std::vector<int32_t>& values);
  void AddF32s(std::string_view key, const std::vector<float>& values);
  // kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1; shape row-major ([rows, cols] or [n]); cols a whole number of blocks.
  absl::Status AddTensor(std::string_view name, DType dtype, std::vector<int64_t> shape);

  absl::Status Begin(const std::string& path);
  absl::Status Write(std::string_view name, std::string_view bytes);
  absl::Status Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hone
