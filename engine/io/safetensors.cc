#include "engine/io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "proto/base/checked.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using nlohmann::json;

struct TypeRow {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;
};
constexpr std::array<TypeRow, 21> kTypes = {{
    {"F32", 32, DType::kF32},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"I32", 32, DType::kI32},
    {"U8", 8, DType::kU8},
    {"BOOL", 8, {}},
    {"I8", 8, {}},
    {"I16", 16, {}},
    {"U16", 16, {}},
    {"U32", 32, {}},
    {"I64", 64, {}},
    {"U64", 64, {}},
    {"F64", 64, {}},
    {"C64", 64, {}},
    {"F8_E4M3", 8, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"F4", 4, {}},
    {"E8M0", 8, {}},
}};

const TypeRow* FindType(std::string_view name) {
  for (const TypeRow& row : kTypes) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

// Where one entry's bytes lie, relative to the data section.
struct Placed {
  SafetensorsTensor tensor;
  uint64_t begin = 0, end = 0;
};

absl::StatusOr<Placed> ParseEntry(const std::string& name, const json& entry, uint64_t data_bytes) {
  const std::string shown = StrCat("tensor '", EscapeForDisplay(name), "'");
  if (!entry.is_object()) return InvalidArgument(shown, ": expected an object with dtype, shape and data_offsets");
  for (const auto& [key, unused] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return InvalidArgument(shown, ": unknown field '", EscapeForDisplay(key), "'");
    }
  }
  const auto dtype = entry.find("dtype"), shape = entry.find("shape"), offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string()) return InvalidArgument(shown, ": dtype must be a string");
  if (shape == entry.end() || !shape->is_array()) return InvalidArgument(shown, ": shape must be an array");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return InvalidArgument(shown, ": data_offsets must be two unsigned integers");
  }
  Placed placed;
  SafetensorsTensor& tensor = placed.tensor;
  tensor.name = name;
  tensor.type = dtype->get<std::string>();
  const TypeRow* type = FindType(tensor.type);
  if (type == nullptr) return InvalidArgument(shown, ": unknown dtype '", EscapeForDisplay(tensor.type), "'");
  tensor.dtype = type->dtype;
  if (shape->size() > 16) return InvalidArgument(shown, ": ", shape->size(), " dimensions, at most 16 are read");
  for (const json& dimension : *shape) {
    if (!dimension.is_number_unsigned() || dimension.get<uint64_t>() > INT64_MAX) {
      return InvalidArgument(shown, ": shape must hold unsigned integers");
    }
    tensor.shape.push_back(dimension.get<int64_t>());
  }
  const auto elements = CheckedProduct(tensor.shape);
  const auto bits = elements ? CheckedMul(*elements, type->bits) : std::nullopt;
  if (!bits) return InvalidArgument(shown, ": its shape overflows 64 bits");
  if (*bits % 8 != 0) return InvalidArgument(shown, ": its elements do not fill whole bytes");
  tensor.elements = *elements;
  placed.begin = (*offsets)[0].get<uint64_t>();
  placed.end = (*offsets)[1].get<uint64_t>();
  if (placed.begin > placed.end || placed.end > data_bytes) {
    return InvalidArgument(shown, ": data_offsets [", placed.begin, ", ", placed.end, "] do not lie in the ",
                           data_bytes, " bytes of data");
  }
  if (placed.end - placed.begin != *bits / 8) {
    return InvalidArgument(shown, ": data_offsets [", placed.begin, ", ", placed.end, "] hold ",
                           placed.end - placed.begin, " bytes, its dtype and shape take ", *bits / 8);
  }
  return placed;
}

absl::Status CheckTiling(const std::vector<Placed>& placed, uint64_t data_start, uint64_t data_bytes) {
  uint64_t at = 0;
  for (const Placed& next : placed) {
    const std::string shown = StrCat("tensor '", EscapeForDisplay(next.tensor.name), "'");
    if (next.begin < at) {
      return InvalidArgument(shown, ": overlaps another tensor at byte ", data_start + next.begin);
    }
    if (next.begin > at) {
      return InvalidArgument(shown, ": bytes ", data_start + at, " to ", data_start + next.begin,
                             " before it belong to no tensor");
    }
    at = next.end;
  }
  if (at != data_bytes) {
    return InvalidArgument("the last ", data_bytes - at, " bytes, from byte ", data_start + at,
                           ", belong to no tensor");
  }
  return absl::OkStatus();
}

}  // namespace

std::string EscapeForDisplay(std::string_view text, size_t max_bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= max_bytes) return out + "...";
    const auto byte = static_cast<unsigned char>(text[i]);
    size_t length = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
    length = std::min(length, text.size() - i);
    const std::string_view character = text.substr(i, length);
    // C1 controls (U+0080..U+009F) and bidirectional or invisible format characters can fool a terminal as ESC does.
    const bool c1 = byte == 0xC2 && length == 2 && static_cast<unsigned char>(character[1]) < 0xA0;
    const unsigned char second = length == 3 ? character[1] : 0, third = length == 3 ? character[2] : 0;
    const bool format = byte == 0xE2 && ((second == 0x80 && third >= 0x8B && third <= 0x8F) ||
                                         (second == 0x80 && third >= 0xA8 && third <= 0xAE) ||
                                         (second == 0x81 && third >= 0xA0 && third <= 0xAF));
    const bool printable = byte < 0x80 ? (byte >= 0x20 && byte != 0x7F && byte != '\\' && byte != '\'' && byte != '"')
                                       : (IsValidUtf8(character) && !c1 && !format);
    if (printable) {
      out += character;
      i += length;
      continue;
    }
    out += "\\x";
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
    ++i;
  }
  return out;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  HONE_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  HONE_ASSIGN_OR_RETURN(SafetensorsFile file, Parse(mapped.bytes(), path));
  file.file_ = std::move(mapped);  // moving a mapping does not move its bytes
  return file;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Parse(std::string_view bytes, const std::string& name) {
  const auto fail = [&](const auto&... parts) { return InvalidArgument(name, ": ", parts...); };
  if (bytes.size() < 8)
    return fail("not a safetensors file: ", bytes.size(), " bytes, the header length alone takes 8");
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kSafetensorsMaxHeaderBytes) {
    return fail("byte 0: a header of ", header_bytes, " bytes, at most ", kSafetensorsMaxHeaderBytes, " are read");
  }
  if (!RangeFits(8, header_bytes, bytes.size())) {
    return fail("byte 0: a header of ", header_bytes, " bytes, the file has ", bytes.size(), " bytes");
  }
  SafetensorsFile file;
  file.path_ = name;
  file.file_bytes_ = bytes.size();
  file.header_ = bytes.substr(8, header_bytes);
  if (!file.header_.starts_with('{')) return fail("byte 8: the header must begin with '{'");
  auto header = ParseJson(file.header_, {.max_bytes = kSafetensorsMaxHeaderBytes, .max_depth = 3});
  if (!header.ok()) return Annotate(header.status(), name + ": header (from byte 8)");
  if (header->size() > kSafetensorsMaxTensors + 1) {
    return fail("header: ", header->size(), " entries, at most ", kSafetensorsMaxTensors, " are read");
  }
  const uint64_t data_start = 8 + header_bytes;
  const uint64_t data_bytes = bytes.size() - data_start;
  std::vector<Placed> placed;
  for (const auto& [key, entry] : header->items()) {
    if (key == "__metadata__") {
      if (!entry.is_object()) return fail("__metadata__: expected an object of strings");
      for (const auto& [label, text] : entry.items()) {
        if (!text.is_string()) return fail("__metadata__: '", EscapeForDisplay(label), "' must be a string");
        file.metadata_[label] = text.get<std::string>();
      }
      continue;
    }
    auto one = ParseEntry(key, entry, data_bytes);
    if (!one.ok()) return Annotate(one.status(), name);
    placed.push_back(*std::move(one));
  }
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.begin, a.end, a.tensor.name) < std::tie(b.begin, b.end, b.tensor.name);
  });
  if (absl::Status tiling = CheckTiling(placed, data_start, data_bytes); !tiling.ok()) return Annotate(tiling, name);
  file.tensors_.reserve(placed.size());
  for (Placed& next : placed) {
    next.tensor.bytes = bytes.substr(data_start + next.begin, next.end - next.begin);
    file.index_[next.tensor.name] = file.tensors_.size();
    file.tensors_.push_back(std::move(next.tensor));
  }
  return file;
}

const SafetensorsTensor* SafetensorsFile::Find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

namespace {

// The shard names of an index, each once. A name that is not a plain file name could lead out of the folder.
absl::StatusOr<std::set<std::string>> ShardNames(const std::string& path) {
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, uint64_t{64} << 20));
  auto index = ParseJson(text, {.max_depth = 8});
  if (!index.ok()) return Annotate(index.status(), path);
  if (!index->is_object() || !index->contains("weight_map") || !(*index)["weight_map"].is_object()) {
    return InvalidArgument(path, ": weight_map must be an object");
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : (*index)["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos || name == "." ||
        name == ".." || !name.ends_with(".safetensors")) {
      return InvalidArgument(path, ": weight_map: '", EscapeForDisplay(tensor),
                             "' must name a .safetensors file in the same folder");
    }
    names.insert(name);
    if (names.size() > 4096) return InvalidArgument(path, ": more than 4096 files");
  }
  return names;
}

}  // namespace

absl::StatusOr<SafetensorsDirectory> SafetensorsDirectory::Open(const std::string& directory) {
  SafetensorsDirectory result;
  const std::string index = directory + "/model.safetensors.index.json";
  std::set<std::string> names = {"model.safetensors"};
  if (absl::StatusOr<MappedFile> present = MappedFile::Open(index); present.ok()) {
    HONE_ASSIGN_OR_RETURN(names, ShardNames(index));
  } else if (!absl::IsNotFound(present.status())) {
    return present.status();
  }
  std::set<std::string> seen;
  for (const std::string& name : names) {
    auto file = SafetensorsFile::Open(directory + "/" + name);
    if (absl::IsNotFound(file.status())) {
      return NotFound(directory, ": there is no ", name, " (weights are read from safetensors only)");
    }
    if (!file.ok()) return file.status();
    for (const SafetensorsTensor& tensor : file->tensors()) {
      if (!seen.insert(tensor.name).second) {
        return InvalidArgument(directory, ": tensor '", EscapeForDisplay(tensor.name), "' is in two files");
      }
    }
    result.files_.push_back(*std::move(file));
  }
  return result;
}

const SafetensorsTensor* SafetensorsDirectory::Find(std::string_view name) const {
  for (const SafetensorsFile& file : files_) {
    if (const SafetensorsTensor* tensor = file.Find(name)) return tensor;
  }
  return nullptr;
}

}  // namespace hone
