#include "engine/io/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/io/safetensors.h"  // EscapeForDisplay
#include "proto/base/checked.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr uint64_t kMaxTensors = 65536;
constexpr uint64_t kMaxKeys = 65536;
constexpr uint64_t kMaxNameBytes = 65535;  // the format's own bound on keys
constexpr uint32_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;

struct GgmlType {
  uint32_t number;
  std::string_view name;
  uint32_t block_elements, block_bytes;
  std::optional<DType> dtype;
};
// Numbers and block sizes of ggml's types, so that the place of every tensor can be checked, readable or not.
constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", 1, 4, DType::kF32},
    {1, "F16", 1, 2, DType::kF16},
    {2, "Q4_0", 32, 18, DType::kQ4_0},
    {3, "Q4_1", 32, 20, DType::kQ4_1},
    {6, "Q5_0", 32, 22, {}},
    {7, "Q5_1", 32, 24, {}},
    {8, "Q8_0", 32, 34, DType::kQ8_0},
    {10, "Q2_K", 256, 84, {}},
    {11, "Q3_K", 256, 110, {}},
    {12, "Q4_K", 256, 144, {}},
    {13, "Q5_K", 256, 176, {}},
    {14, "Q6_K", 256, 210, {}},
    {15, "Q8_K", 256, 292, {}},
    {16, "IQ2_XXS", 256, 66, {}},
    {17, "IQ2_XS", 256, 74, {}},
    {18, "IQ3_XXS", 256, 98, {}},
    {19, "IQ1_S", 256, 50, {}},
    {20, "IQ4_NL", 32, 18, {}},
    {21, "IQ3_S", 256, 110, {}},
    {22, "IQ2_S", 256, 82, {}},
    {23, "IQ4_XS", 256, 136, {}},
    {24, "I8", 1, 1, {}},
    {25, "I16", 1, 2, {}},
    {26, "I32", 1, 4, {}},
    {27, "I64", 1, 8, {}},
    {28, "F64", 1, 8, {}},
    {29, "IQ1_M", 256, 56, {}},
    {30, "BF16", 1, 2, DType::kBF16},
    {34, "TQ1_0", 256, 54, {}},
    {35, "TQ2_0", 256, 66, {}},
    {39, "MXFP4", 32, 17, {}},
};

const GgmlType* FindGgmlType(uint32_t number) {
  for (const GgmlType& type : kGgmlTypes) {
    if (type.number == number) return &type;
  }
  return nullptr;
}

// Bytes of a number; 0 for strings and arrays.
uint64_t ScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

template <typename T>
T Load(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

using Scalar = std::variant<uint64_t, int64_t, double, bool>;
Scalar LoadScalar(GgufType type, const char* at) {
  switch (type) {
    case GgufType::kU8:
      return uint64_t{Load<uint8_t>(at)};
    case GgufType::kU16:
      return uint64_t{Load<uint16_t>(at)};
    case GgufType::kU32:
      return uint64_t{Load<uint32_t>(at)};
    case GgufType::kU64:
      return Load<uint64_t>(at);
    case GgufType::kI8:
      return int64_t{Load<int8_t>(at)};
    case GgufType::kI16:
      return int64_t{Load<int16_t>(at)};
    case GgufType::kI32:
      return int64_t{Load<int32_t>(at)};
    case GgufType::kI64:
      return Load<int64_t>(at);
    case GgufType::kF32:
      return double{Load<float>(at)};
    case GgufType::kF64:
      return Load<double>(at);
    case GgufType::kBool:
      return Load<uint8_t>(at) != 0;
    default:
      break;
  }
  FailInvariant(__FILE__, __LINE__, "a number's type", "");
}

}  // namespace

std::string_view GgufTypeName(GgufType type) {
  static constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                "bool", "string", "array", "u64", "i64", "f64"};
  const auto index = static_cast<uint32_t>(type);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

// Reads front to back; every step checks what is left before it trusts a length.
class GgufParser {
 public:
  GgufParser(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  absl::StatusOr<GgufFile> Parse() {
    HONE_RETURN_IF_ERROR(ReadHeader());
    HONE_RETURN_IF_ERROR(ReadMetadata());
    HONE_RETURN_IF_ERROR(ReadTensorList());
    HONE_RETURN_IF_ERROR(PlaceTensors());
    file_.path_ = name_;
    file_.file_bytes_ = bytes_.size();
    return std::move(file_);
  }

 private:
  template <typename... Parts>
  absl::Status Fail(uint64_t offset, const Parts&... parts) const {
    return InvalidArgument(name_, ": byte ", offset, ": ", parts...);
  }

  template <typename T>
  absl::StatusOr<T> Take(std::string_view what) {
    if (!RangeFits(at_, sizeof(T), bytes_.size())) return Fail(at_, "the file ends inside ", what);
    const T value = Load<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return value;
  }

  absl::StatusOr<std::string_view> TakeString(std::string_view what, uint64_t max_bytes) {
    const uint64_t start = at_;
    HONE_ASSIGN_OR_RETURN(const uint64_t length, Take<uint64_t>(what));
    if (length > max_bytes) return Fail(start, what, " of ", length, " bytes, at most ", max_bytes, " are read");
    if (!RangeFits(at_, length, bytes_.size())) {
      return Fail(start, what, " of ", length, " bytes, the file has ", bytes_.size() - at_, " left");
    }
    const std::string_view text = bytes_.substr(at_, length);
    at_ += length;
    return text;
  }

  absl::Status ReadHeader() {
    if (bytes_.size() < 24 || bytes_.substr(0, 4) != "GGUF") return Fail(0, "not a GGUF file");
    at_ = 4;
    HONE_ASSIGN_OR_RETURN(const uint32_t version, Take<uint32_t>("the version"));
    if (version != 3) {
      const bool swapped = version == __builtin_bswap32(3);
      return Fail(4, "GGUF version ", version, swapped ? " (big-endian)" : "",
                  ", only version 3, little-endian, is read");
    }
    HONE_ASSIGN_OR_RETURN(tensor_count_, Take<uint64_t>("the tensor count"));
    HONE_ASSIGN_OR_RETURN(key_count_, Take<uint64_t>("the metadata count"));
    if (tensor_count_ > kMaxTensors) return Fail(8, tensor_count_, " tensors, at most ", kMaxTensors, " are read");
    if (key_count_ > kMaxKeys) return Fail(16, key_count_, " metadata keys, at most ", kMaxKeys, " are read");
    return absl::OkStatus();
  }

  absl::Status ReadMetadata() {
    for (uint64_t i = 0; i < key_count_; ++i) {
      const uint64_t start = at_;
      HONE_ASSIGN_OR_RETURN(const std::string_view key, TakeString("a metadata key", kMaxNameBytes));
      HONE_ASSIGN_OR_RETURN(const uint32_t type, Take<uint32_t>("a metadata type"));
      auto value = TakeValue(type);
      if (!value.ok()) return Annotate(value.status(), StrCat("key '", EscapeForDisplay(key), "'"));
      if (!file_.keys_.emplace(std::string(key), file_.metadata_.size()).second) {
        return Fail(start, "the key '", EscapeForDisplay(key), "' is there twice");
      }
      file_.metadata_.emplace_back(std::string(key), *std::move(value));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<GgufValue> TakeValue(uint32_t number) {
    if (number > static_cast<uint32_t>(GgufType::kF64)) return Fail(at_ - 4, "unknown value type ", number);
    GgufValue value{.type = static_cast<GgufType>(number), .offset = at_};
    if (value.type == GgufType::kString) {
      HONE_ASSIGN_OR_RETURN(value.value, TakeString("a string", bytes_.size()));
      return value;
    }
    if (value.type == GgufType::kArray) {
      HONE_ASSIGN_OR_RETURN(value.value, TakeArray());
      return value;
    }
    const uint64_t size = ScalarBytes(value.type);
    if (!RangeFits(at_, size, bytes_.size())) return Fail(at_, "the file ends inside a value");
    std::visit([&](auto scalar) { value.value = scalar; }, LoadScalar(value.type, bytes_.data() + at_));
    at_ += size;
    return value;
  }

  absl::StatusOr<GgufArray> TakeArray() {
    const uint64_t start = at_;
    HONE_ASSIGN_OR_RETURN(const uint32_t number, Take<uint32_t>("an array's type"));
    GgufArray array;
    HONE_ASSIGN_OR_RETURN(array.count, Take<uint64_t>("an array's count"));
    if (number > static_cast<uint32_t>(GgufType::kF64)) return Fail(start, "unknown array type ", number);
    array.element = static_cast<GgufType>(number);
    if (array.element == GgufType::kArray) return Fail(start, "arrays of arrays are not read");
    // Each element takes at least this many bytes: so an impossible count is refused before anything is allocated.
    const uint64_t least = array.element == GgufType::kString ? 8 : ScalarBytes(array.element);
    const auto bytes = CheckedMul(array.count, least);
    if (!bytes || !RangeFits(at_, *bytes, bytes_.size())) {
      return Fail(start, "an array of ", array.count, " ", GgufTypeName(array.element), ", the file has ",
                  bytes_.size() - at_, " bytes left");
    }
    if (array.element != GgufType::kString) {
      array.raw = bytes_.substr(at_, *bytes);
      at_ += *bytes;
      return array;
    }
    array.strings.reserve(array.count);
    for (uint64_t i = 0; i < array.count; ++i) {
      HONE_ASSIGN_OR_RETURN(const std::string_view text, TakeString("a string", bytes_.size()));
      array.strings.push_back(text);
    }
    return array;
  }

  absl::Status ReadTensorList() {
    for (uint64_t i = 0; i < tensor_count_; ++i) {
      const uint64_t start = at_;
      GgufTensor tensor;
      HONE_ASSIGN_OR_RETURN(const std::string_view name, TakeString("a tensor name", kMaxNameBytes));
      tensor.name = std::string(name);
      const std::string shown = StrCat("tensor '", EscapeForDisplay(name), "': ");
      HONE_ASSIGN_OR_RETURN(const uint32_t dimensions, Take<uint32_t>("a dimension count"));
      if (dimensions > 4) return Fail(start, shown, dimensions, " dimensions, at most 4 are read");
      for (uint32_t d = 0; d < dimensions; ++d) {
        HONE_ASSIGN_OR_RETURN(const uint64_t size, Take<uint64_t>("a dimension"));
        if (size == 0 || size > INT64_MAX) return Fail(start, shown, "a dimension of ", size);
        tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
      }
      HONE_ASSIGN_OR_RETURN(tensor.type, Take<uint32_t>("a tensor type"));
      HONE_ASSIGN_OR_RETURN(tensor.offset, Take<uint64_t>("a tensor offset"));
      if (!file_.names_.emplace(tensor.name, file_.tensors_.size()).second) {
        return Fail(start, shown, "is there twice");
      }
      starts_.push_back(start);
      file_.tensors_.push_back(std::move(tensor));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> Alignment() const {
    const GgufValue* value = file_.FindValue("general.alignment");
    if (value == nullptr) return kDefaultAlignment;
    const auto* alignment = std::get_if<uint64_t>(&value->value);
    if (alignment == nullptr || !std::has_single_bit(*alignment) || *alignment < 8 || *alignment > kMaxAlignment) {
      return Fail(value->offset, "general.alignment must be a power of two from 8 to ", kMaxAlignment);
    }
    return *alignment;
  }

  absl::Status PlaceTensors() {
    HONE_ASSIGN_OR_RETURN(const uint64_t alignment, Alignment());
    const uint64_t data_start = (at_ + alignment - 1) / alignment * alignment;  // at_ is at most the file's size
    file_.header_ = bytes_.substr(0, at_);
    if (file_.tensors_.empty()) return absl::OkStatus();
    if (data_start > bytes_.size()) return Fail(at_, "the file ends before the tensors' data");
    std::vector<std::pair<uint64_t, size_t>> by_offset;
    for (size_t i = 0; i < file_.tensors_.size(); ++i) {
      HONE_RETURN_IF_ERROR(PlaceTensor(file_.tensors_[i], starts_[i], data_start, alignment));
      by_offset.emplace_back(file_.tensors_[i].offset, i);
    }
    std::sort(by_offset.begin(), by_offset.end());
    uint64_t end = data_start;
    for (const auto& [offset, i] : by_offset) {
      const GgufTensor& tensor = file_.tensors_[i];
      if (offset < end) {
        return Fail(starts_[i], "tensor '", EscapeForDisplay(tensor.name), "' overlaps another at byte ", offset);
      }
      end = offset + tensor.bytes.size();
    }
    return absl::OkStatus();
  }

  absl::Status PlaceTensor(GgufTensor& tensor, uint64_t start, uint64_t data_start, uint64_t alignment) const {
    const std::string shown = StrCat("tensor '", EscapeForDisplay(tensor.name), "': ");
    const auto offset = CheckedAdd(data_start, tensor.offset);
    if (!offset || *offset > bytes_.size()) {
      return Fail(start, shown, "its offset ", tensor.offset, " lies beyond the file's ", bytes_.size(), " bytes");
    }
    if (tensor.offset % alignment != 0) return Fail(start, shown, "its offset is not a multiple of ", alignment);
    tensor.offset = *offset;
    const GgmlType* type = FindGgmlType(tensor.type);
    if (type == nullptr) {
      tensor.type_name = StrCat("type ", tensor.type);
      return absl::OkStatus();  // an error where it is needed
    }
    tensor.type_name = std::string(type->name);
    tensor.dtype = type->dtype;
    const uint64_t row = tensor.shape.empty() ? 1 : static_cast<uint64_t>(tensor.shape.back());
    if (row % type->block_elements != 0) {
      return Fail(start, shown, "rows of ", row, " elements are not whole ", type->name, " blocks of ",
                  type->block_elements);
    }
    const auto elements = CheckedProduct(tensor.shape);
    const auto bytes = elements ? CheckedMul(*elements / type->block_elements, type->block_bytes) : std::nullopt;
    if (!bytes) return Fail(start, shown, "its shape overflows 64 bits");
    if (!RangeFits(tensor.offset, *bytes, bytes_.size())) {
      return Fail(start, shown, *bytes, " bytes from byte ", tensor.offset, " do not lie in the file's ",
                  bytes_.size());
    }
    tensor.bytes = bytes_.substr(tensor.offset, *bytes);
    return absl::OkStatus();
  }

  std::string_view bytes_;
  std::string name_;
  uint64_t at_ = 0;
  uint64_t tensor_count_ = 0, key_count_ = 0;
  std::vector<uint64_t> starts_;  // where each tensor's entry begins
  GgufFile file_;
};

absl::StatusOr<GgufFile> GgufFile::Open(const std::string& path) {
  HONE_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  HONE_ASSIGN_OR_RETURN(GgufFile file, Parse(mapped.bytes(), path));
  file.file_ = std::move(mapped);  // moving a mapping does not move its bytes
  return file;
}

absl::StatusOr<GgufFile> GgufFile::Parse(std::string_view bytes, const std::string& name) {
  return GgufParser(bytes, name).Parse();
}

const GgufTensor* GgufFile::Find(std::string_view name) const {
  const auto found = names_.find(std::string(name));
  return found == names_.end() ? nullptr : &tensors_[found->second];
}

bool GgufFile::Has(std::string_view key) const { return FindValue(key) != nullptr; }

const GgufValue* GgufFile::FindValue(std::string_view key) const {
  const auto found = keys_.find(std::string(key));
  return found == keys_.end() ? nullptr : &metadata_[found->second].second;
}

namespace {

absl::Status WrongType(const GgufFile& file, std::string_view key, const GgufValue& value, std::string_view expected) {
  return InvalidArgument(file.path(), ": byte ", value.offset, ": ", key, " is ", GgufTypeName(value.type),
                         ", expected ", expected);
}

std::optional<int64_t> AsInteger(const Scalar& scalar) {
  if (const auto* i = std::get_if<int64_t>(&scalar)) return *i;
  const auto* u = std::get_if<uint64_t>(&scalar);
  if (u == nullptr || *u > INT64_MAX) return std::nullopt;
  return static_cast<int64_t>(*u);
}

std::optional<Scalar> AsScalar(const GgufValue& value) {
  if (const auto* v = std::get_if<uint64_t>(&value.value)) return *v;
  if (const auto* v = std::get_if<int64_t>(&value.value)) return *v;
  if (const auto* v = std::get_if<double>(&value.value)) return *v;
  if (const auto* v = std::get_if<bool>(&value.value)) return *v;
  return std::nullopt;
}

absl::StatusOr<const GgufValue*> Need(const GgufFile& file, std::string_view key) {
  const GgufValue* value = file.FindValue(key);
  if (value == nullptr) return NotFound(file.path(), ": the metadata has no ", key);
  return value;
}

}  // namespace

absl::StatusOr<std::string> GgufFile::String(std::string_view key) const {
  HONE_ASSIGN_OR_RETURN(const GgufValue* value, Need(*this, key));
  const auto* text = std::get_if<std::string_view>(&value->value);
  if (text == nullptr) return WrongType(*this, key, *value, "a string");
  return std::string(*text);
}

absl::StatusOr<int64_t> GgufFile::Integer(std::string_view key) const {
  HONE_ASSIGN_OR_RETURN(const GgufValue* value, Need(*this, key));
  const auto scalar = AsScalar(*value);
  const auto integer = scalar ? AsInteger(*scalar) : std::nullopt;
  if (!integer) return WrongType(*this, key, *value, "an integer below 2^63");
  return *integer;
}

absl::StatusOr<double> GgufFile::Float(std::string_view key) const {
  HONE_ASSIGN_OR_RETURN(const GgufValue* value, Need(*this, key));
  if (const auto* number = std::get_if<double>(&value->value)) return *number;
  const auto scalar = AsScalar(*value);
  const auto integer = scalar ? AsInteger(*scalar) : std::nullopt;
  if (!integer) return WrongType(*this, key, *value, "a number");
  return static_cast<double>(*integer);
}

absl::StatusOr<bool> GgufFile::Bool(std::string_view key) const {
  HONE_ASSIGN_OR_RETURN(const GgufValue* value, Need(*this, key));
  const auto* flag = std::get_if<bool>(&value->value);
  if (flag == nullptr) return WrongType(*this, key, *value, "a bool");
  return *flag;
}

absl::StatusOr<std::vector<std::string>> GgufFile::Strings(std::string_view key) const {
  HONE_ASSIGN_OR_RETURN(const GgufValue* value, Need(*this, key));
  const auto* array = std::get_if<GgufArray>(&value->value);
  // An empty array says nothing about its elements.
  if (array == nullptr || (array->element != GgufType::kString && array->count > 0)) {
    return WrongType(*this, key, *value, "an array of strings");
  }
  return std::vector<std::string>(array->strings.begin(), array->strings.end());
}

absl::StatusOr<std::vector<int32_t>> GgufFile::Integers(std::string_view key) const {
  HONE_ASSIGN_OR_RETURN(const GgufValue* value, Need(*this, key));
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || array->element == GgufType::kString) {
    return WrongType(*this, key, *value, "an array of integers");
  }
  const uint64_t size = ScalarBytes(array->element);
  std::vector<int32_t> out;
  out.reserve(array->count);
  for (uint64_t i = 0; i < array->count; ++i) {
    const auto integer = AsInteger(LoadScalar(array->element, array->raw.data() + i * size));
    if (!integer || *integer < INT32_MIN || *integer > INT32_MAX) {
      return InvalidArgument(path_, ": byte ", value->offset, ": ", key, "[", i, "] is not a 32-bit integer");
    }
    out.push_back(static_cast<int32_t>(*integer));
  }
  return out;
}

absl::StatusOr<std::vector<float>> GgufFile::Floats(std::string_view key) const {
  HONE_ASSIGN_OR_RETURN(const GgufValue* value, Need(*this, key));
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || (array->element != GgufType::kF32 && array->element != GgufType::kF64)) {
    return WrongType(*this, key, *value, "an array of floats");
  }
  const uint64_t size = ScalarBytes(array->element);
  std::vector<float> out;
  out.reserve(array->count);
  for (uint64_t i = 0; i < array->count; ++i) {
    out.push_back(static_cast<float>(std::get<double>(LoadScalar(array->element, array->raw.data() + i * size))));
  }
  return out;
}

}  // namespace hone
