#include <algorithm>
#include <map>
#include <tuple>

#include "engine/io/output_file.h"
#include "engine/io/safetensors.h"
#include "nlohmann/json.hpp"
#include "proto/base/checked.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

absl::StatusOr<std::string_view> TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kI32:
      return "I32";
    case DType::kU8:
      return "U8";
    default:
      return InvalidArgument("safetensors holds plain types only, not ", DTypeName(dtype));
  }
}

}  // namespace

struct SafetensorsWriter::State {
  struct Slot {
    uint64_t offset = 0, bytes = 0;  // in the file
    uint64_t written = 0;
  };
  std::unique_ptr<OutputFile> file;
  std::map<std::string, Slot, std::less<>> slots;
  std::string path;
  uint64_t file_bytes = 0;
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsWriter::~SafetensorsWriter() = default;
uint64_t SafetensorsWriter::file_bytes() const { return state_->file_bytes; }

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, std::vector<Declaration> tensors, std::map<std::string, std::string> metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const Declaration& a, const Declaration& b) {
    return std::make_tuple(-BlockBytes(a.dtype), std::string_view(a.name)) <
           std::make_tuple(-BlockBytes(b.dtype), std::string_view(b.name));
  });
  metadata.emplace("format", "pt");
  nlohmann::ordered_json header;
  header["__metadata__"] = nlohmann::ordered_json(metadata);
  auto state = std::make_unique<State>();
  state->path = path;
  uint64_t at = 0;
  for (const Declaration& tensor : tensors) {
    HONE_ASSIGN_OR_RETURN(const std::string_view type, TypeOf(tensor.dtype));
    const auto elements = CheckedProduct(tensor.shape);
    const auto bytes = elements ? StorageBytes(tensor.dtype, *elements) : std::nullopt;
    if (!bytes) return InvalidArgument(path, ": tensor '", tensor.name, "': its shape overflows");
    if (tensor.name == "__metadata__" || !IsValidUtf8(tensor.name)) {
      return InvalidArgument(path, ": '", EscapeForDisplay(tensor.name), "' cannot be a tensor's name");
    }
    if (!state->slots.emplace(tensor.name, State::Slot{.offset = at, .bytes = *bytes}).second) {
      return InvalidArgument(path, ": tensor '", tensor.name, "' is declared twice");
    }
    header[tensor.name] = {{"dtype", type}, {"shape", tensor.shape}, {"data_offsets", {at, at + *bytes}}};
    at += *bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // the data starts at a multiple of 8, as the reference writer's
  if (text.size() > kSafetensorsMaxHeaderBytes) return InvalidArgument(path, ": too many tensors for one header");
  for (auto& [name, slot] : state->slots) slot.offset += 8 + text.size();
  state->file_bytes = 8 + text.size() + at;
  HONE_ASSIGN_OR_RETURN(state->file, OutputFile::Create(path));
  HONE_RETURN_IF_ERROR(state->file->Reserve(state->file_bytes));
  const uint64_t length = text.size();
  HONE_RETURN_IF_ERROR(state->file->WriteAt(0, {reinterpret_cast<const char*>(&length), 8}));
  HONE_RETURN_IF_ERROR(state->file->WriteAt(8, text));
  return std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(std::move(state)));
}

absl::Status SafetensorsWriter::Write(std::string_view name, std::string_view bytes) {
  const auto slot = state_->slots.find(name);
  HONE_CHECK(slot != state_->slots.end(), "undeclared tensor ", name);
  HONE_CHECK(slot->second.bytes == bytes.size(), "tensor ", name, " takes ", slot->second.bytes, " bytes, got ",
             bytes.size());
  return WritePart(name, 0, bytes);
}

absl::Status SafetensorsWriter::WritePart(std::string_view name, uint64_t offset, std::string_view bytes) {
  const auto found = state_->slots.find(name);
  HONE_CHECK(found != state_->slots.end(), "undeclared tensor ", name);
  State::Slot& slot = found->second;
  HONE_CHECK(offset == slot.written && RangeFits(offset, bytes.size(), slot.bytes), "tensor ", name, ": part at ",
             offset, " of ", bytes.size(), " bytes");
  HONE_RETURN_IF_ERROR(state_->file->WriteAt(slot.offset + offset, bytes));
  slot.written += bytes.size();
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  for (const auto& [name, slot] : state_->slots) {
    HONE_CHECK(slot.written == slot.bytes, "tensor ", name, " was not written to its end");
  }
  return state_->file->Commit();
}

}  // namespace hone
