#include "tests/kernels/op_case.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numbers>

#include "kernels/half.h"
#include "kernels/reference/decode.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {
namespace {

// Before and after every tensor: one alignment unit. All ones are NaN in fp32 and bf16, so that reading it shows as
// well.
constexpr int64_t kGuardBytes = 256;
constexpr uint8_t kGuardByte = 0xff;

uint64_t Hash(const std::string& text) {
  uint64_t hash = 1469598103934665603u;
  for (char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211u;
  return hash;
}

void StoreElement(DType dtype, double value, uint8_t* p) {
  if (dtype == DType::kI32) {
    const auto v = static_cast<int32_t>(value);
    std::memcpy(p, &v, 4);
  } else if (dtype == DType::kF32) {
    const auto v = static_cast<float>(value);
    std::memcpy(p, &v, 4);
  } else if (dtype == DType::kBF16) {
    const float v = reference::RoundToBf16(static_cast<float>(value));
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    const auto top = static_cast<uint16_t>(bits >> 16 | (std::isnan(v) ? 0x40 : 0));
    std::memcpy(p, &top, 2);
  } else if (dtype == DType::kU8) {
    *p = std::isnan(value) ? 0xff : static_cast<uint8_t>(value);
  } else {
    HONE_CHECK(dtype == DType::kF16, DTypeName(dtype));
    const uint16_t half = FloatToHalf(static_cast<float>(value));
    std::memcpy(p, &half, 2);
  }
}

double LoadElement(DType dtype, const uint8_t* p) {
  if (dtype == DType::kI32) {
    int32_t v;
    std::memcpy(&v, p, 4);
    return v;
  }
  if (dtype == DType::kU8) return *p;
  if (dtype == DType::kF32) {
    float v;
    std::memcpy(&v, p, 4);
    return v;
  }
  return dtype == DType::kBF16 ? reference::Bf16Value(p) : reference::HalfValue(p);
}

}  // namespace

struct CaseTensors::Slot {
  Tensor view;
  std::unique_ptr<MemoryBlock> memory;
  std::vector<uint8_t> before, after;  // guards included
  bool expected = false;

  const uint8_t* Element(const std::vector<uint8_t>& image, int64_t r, int64_t c) const {
    return image.data() + kGuardBytes + (r * view.pitch + c) * BlockBytes(view.dtype);
  }
  uint8_t* Element(std::vector<uint8_t>& image, int64_t r, int64_t c) const {
    return image.data() + kGuardBytes + (r * view.pitch + c) * BlockBytes(view.dtype);
  }
  Values Read(const std::vector<uint8_t>& image) const {
    Values values;
    values.reserve(static_cast<size_t>(view.elements()));
    for (int64_t r = 0; r < view.rows; ++r) {
      for (int64_t c = 0; c < view.cols; ++c) values.push_back(LoadElement(view.dtype, Element(image, r, c)));
    }
    return values;
  }
  Tensor Whole() const {
    const auto words = static_cast<int64_t>(before.size() / 4);
    return {memory->data(), DType::kI32, 1, words, words};
  }
};

CaseTensors::CaseTensors(Backend& backend, const std::string& seed, Purpose purpose)
    : backend_(backend), state_(Hash(seed)), purpose_(purpose) {}
CaseTensors::~CaseTensors() = default;

DType CaseTensors::act() const { return backend_.ops().activation_dtype(); }

// splitmix64
int64_t CaseTensors::Below(int64_t n) {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<int64_t>((z ^ (z >> 31)) % static_cast<uint64_t>(n));
}

// Twelve uniform values: normal enough, and the same on every machine.
double CaseTensors::Normal() {
  if (timing()) return static_cast<double>(Below(4096)) / 1024.0 - 2.0;
  double sum = 0;
  for (int i = 0; i < 3; ++i) {
    int64_t bits = Below(int64_t{1} << 60);
    for (int j = 0; j < 4; ++j, bits >>= 15) sum += static_cast<double>(bits & 0x7fff) / 32768.0;
  }
  return sum - 6.0;
}

CaseTensors::Slot& CaseTensors::NewSlot(DType dtype, int64_t rows, int64_t cols, int64_t gap) {
  auto slot = std::make_unique<Slot>();
  const int64_t data_bytes = (rows * (cols + gap) * BlockBytes(dtype) + 3) / 4 * 4;
  slot->before.assign(static_cast<size_t>(data_bytes + 2 * kGuardBytes), kGuardByte);
  auto memory = backend_.Reserve(slot->before.size());
  HONE_CHECK(memory.ok(), memory.status().ToString());
  slot->memory = *std::move(memory);
  slot->view = {static_cast<char*>(slot->memory->data()) + kGuardBytes, dtype, rows, cols, cols + gap};
  slots_.push_back(std::move(slot));
  return *slots_.back();
}

Tensor CaseTensors::Add(DType dtype, int64_t rows, int64_t cols, int64_t gap, const Values& values) {
  Slot& slot = NewSlot(dtype, rows, cols, gap);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) StoreElement(dtype, values[r * cols + c], slot.Element(slot.before, r, c));
  }
  return slot.view;
}

Tensor CaseTensors::Random(DType dtype, int64_t rows, int64_t cols, double scale, int64_t gap) {
  Values values(static_cast<size_t>(rows * cols));
  for (double& v : values) v = Normal() * scale;
  return Add(dtype, rows, cols, gap, values);
}

Tensor CaseTensors::From(DType dtype, int64_t rows, int64_t cols, const Values& values, int64_t gap) {
  HONE_CHECK(static_cast<int64_t>(values.size()) == rows * cols);
  return Add(dtype, rows, cols, gap, values);
}

Tensor CaseTensors::Ints(const std::vector<int32_t>& values) {
  return Add(DType::kI32, 1, static_cast<int64_t>(values.size()), 0, Values(values.begin(), values.end()));
}

Tensor CaseTensors::Output(DType dtype, int64_t rows, int64_t cols, int64_t gap) {
  const double nothing = dtype == DType::kI32 ? INT_MIN : NAN;
  return Add(dtype, rows, cols, gap, Values(static_cast<size_t>(rows * cols), nothing));
}

const void* CaseTensors::RawBytes(const std::vector<uint8_t>& bytes) {
  const auto size = static_cast<int64_t>(bytes.size());
  Slot& slot = NewSlot(DType::kU8, 1, size, 0);
  std::copy(bytes.begin(), bytes.end(), slot.before.begin() + kGuardBytes);
  return slot.view.data;
}

CaseTensors::Weight CaseTensors::RandomWeight(DType dtype, int64_t rows, int64_t cols, bool nested) {
  const auto bytes_needed = StorageBytes(dtype, static_cast<uint64_t>(rows * cols));
  HONE_CHECK(bytes_needed.has_value(), rows, " x ", cols, " of ", DTypeName(dtype));
  std::vector<uint8_t> bytes(*bytes_needed);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(Below(256));
  const auto put_half = [&](size_t at, double value) {
    const uint16_t half = FloatToHalf(static_cast<float>(value));
    std::memcpy(&bytes[at], &half, 2);
  };
  const auto step = static_cast<size_t>(BlockBytes(dtype));
  for (size_t at = 0; dtype != DType::kNf4 && at < bytes.size(); at += step) {
    if (dtype == DType::kF32 || dtype == DType::kBF16) {
      StoreElement(dtype, Normal() * 0.05, &bytes[at]);
    } else {
      put_half(at, Normal() * 0.01);  // the value itself, or the block's scale; some are subnormal
      if (dtype == DType::kQ4_1) put_half(at + 2, Normal() * 0.1);
    }
  }
  // Keeps a host copy alive and puts another on the device.
  const auto keep = [&](const void* data, size_t size) {
    const auto* p = static_cast<const uint8_t*>(data);
    host_weights_.push_back(std::make_unique<std::vector<uint8_t>>(p, p + size));
    return std::pair<const void*, const void*>(host_weights_.back()->data(), RawBytes(*host_weights_.back()));
  };
  Weight w;
  w.host.dtype = dtype;
  w.host.rows = rows;
  w.host.cols = cols;
  w.device = w.host;
  std::tie(w.host.data, w.device.data) = keep(bytes.data(), bytes.size());
  if (dtype != DType::kNf4) return w;
  const int64_t blocks = (rows * cols + kNf4BlockSize - 1) / kNf4BlockSize;
  const auto keep_floats = [&](int64_t count, auto value, const float*& host, const float*& device) {
    std::vector<float> floats(static_cast<size_t>(count));
    for (float& f : floats) f = static_cast<float>(value());
    const auto [h, d] = keep(floats.data(), floats.size() * 4);
    host = static_cast<const float*>(h);
    device = static_cast<const float*>(d);
  };
  if (!nested) {
    keep_floats(
        blocks, [&] { return 0.05 + 0.01 * Normal(); }, w.host.absmax, w.device.absmax);
    return w;
  }
  std::vector<uint8_t> codes(static_cast<size_t>(blocks));
  for (uint8_t& c : codes) c = static_cast<uint8_t>(Below(256));
  const auto [h, d] = keep(codes.data(), codes.size());
  w.host.absmax_codes = static_cast<const uint8_t*>(h);
  w.device.absmax_codes = static_cast<const uint8_t*>(d);
  keep_floats(
      256, [&] { return Normal() / 3; }, w.host.nested_code, w.device.nested_code);
  keep_floats((blocks + kNf4NestedBlockSize - 1) / kNf4NestedBlockSize, [&] { return 0.02 + 0.001 * Normal(); },
              w.host.nested_absmax, w.device.nested_absmax);
  w.host.nested_offset = w.device.nested_offset = 0.0471f;
  return w;
}

Segments CaseTensors::MakeSegments(const std::vector<Segment>& segments) {
  host_segments_.push_back(std::make_unique<std::vector<Segment>>(segments));
  Values numbers;
  for (const Segment& s : segments) {
    for (int32_t v : {s.q0, s.q_len, s.kv0, s.kv_len, s.prefix0, s.prefix_len}) numbers.push_back(v);
  }
  return {*host_segments_.back(), From(DType::kI32, static_cast<int64_t>(segments.size()), 6, numbers)};
}

CaseTensors::Slot& CaseTensors::Find(Tensor tensor) const {
  for (const auto& slot : slots_) {
    if (slot->view.data == tensor.data && slot->view.rows == tensor.rows && slot->view.cols == tensor.cols)
      return *slot;
  }
  HONE_CHECK(false, "a tensor that this case did not make");
  return *slots_.front();
}

Values CaseTensors::Before(Tensor tensor) const {
  const Slot& slot = Find(tensor);
  return slot.Read(slot.before);
}

reference::Matrix<double> CaseTensors::MatrixBefore(Tensor tensor) const {
  return reference::Matrix<double>(tensor.rows, tensor.cols, Before(tensor));
}

Values CaseTensors::After(Tensor tensor) const {
  const Slot& slot = Find(tensor);
  return slot.Read(slot.after);
}

void CaseTensors::Expect(const std::string& what, Tensor tensor, const Values& exact, Bound bound) {
  Values rounded = exact;
  if (tensor.dtype == DType::kBF16) {
    for (double& v : rounded) v = reference::RoundToBf16(static_cast<float>(v));
  }
  Expect(what, tensor, exact, rounded, bound);
}

void CaseTensors::Expect(const std::string& what, Tensor tensor, const Values& exact, const Values& rounded,
                         Bound bound) {
  Slot& slot = Find(tensor);
  slot.expected = true;
  const Values got = slot.Read(slot.after);
  HONE_CHECK(got.size() == exact.size() && got.size() == rounded.size(), what, ": ", exact.size(), " values expected, ",
             got.size(), " in the tensor");
  double error = 0, yardstick = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t r = static_cast<int64_t>(i) / tensor.cols, c = static_cast<int64_t>(i) % tensor.cols;
    if (std::isnan(exact[i])) {
      const auto size = static_cast<size_t>(BlockBytes(tensor.dtype));
      if (std::memcmp(slot.Element(slot.before, r, c), slot.Element(slot.after, r, c), size) != 0) {
        failures_.push_back(StrCat(what, "[", r, ", ", c, "] was to be left alone"));
        return;
      }
      continue;
    }
    if (!std::isfinite(got[i])) {
      failures_.push_back(StrCat(what, "[", r, ", ", c, "] is ", got[i], ", expected ", exact[i]));
      return;
    }
    error += (got[i] - exact[i]) * (got[i] - exact[i]);
    yardstick += (rounded[i] - exact[i]) * (rounded[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  double allowed = bound.nmse * norm;
  if (tensor.dtype == DType::kBF16) allowed += bound.bf16_factor * bound.bf16_factor * yardstick;
  char line[160];
  std::snprintf(line, sizeof(line), "%s: nmse %.2e, allowed %.2e; ", what.c_str(), norm > 0 ? error / norm : error,
                norm > 0 ? allowed / norm : allowed);
  figures_ += line;
  if (!(error <= allowed)) failures_.push_back(line);
}

void CaseTensors::ExpectExactly(const std::string& what, Tensor tensor, const Values& exact) {
  Slot& slot = Find(tensor);
  slot.expected = true;
  const Values got = slot.Read(slot.after);
  HONE_CHECK(got.size() == exact.size(), what);
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t r = static_cast<int64_t>(i) / tensor.cols, c = static_cast<int64_t>(i) % tensor.cols;
    uint8_t bits[4] = {};
    StoreElement(tensor.dtype, exact[i], bits);
    const auto size = static_cast<size_t>(BlockBytes(tensor.dtype));
    // NaN in exact: unchanged.
    const uint8_t* expected = std::isnan(exact[i]) ? slot.Element(slot.before, r, c) : bits;
    if (std::memcmp(expected, slot.Element(slot.after, r, c), size) == 0) continue;
    failures_.push_back(StrCat(what, "[", r, ", ", c, "] is ", got[i], ", expected exactly ", exact[i]));
    return;
  }
  figures_ += what + ": exact; ";
}

void CaseTensors::ExpectEach(const std::string& what, Tensor tensor, const std::function<bool(size_t, double)>& holds) {
  Slot& slot = Find(tensor);
  slot.expected = true;
  const Values got = slot.Read(slot.after);
  for (size_t i = 0; i < got.size(); ++i) {
    if (holds(i, got[i])) continue;
    failures_.push_back(StrCat(what, "[", i, "] is ", got[i]));
    return;
  }
}

void CaseTensors::UploadAll() {
  for (const auto& slot : slots_) backend_.ops().Upload(slot->before.data(), slot->Whole());
}

void CaseTensors::DownloadAll() {
  for (const auto& slot : slots_) {
    slot->after.resize(slot->before.size());
    backend_.ops().Download(slot->Whole(), slot->after.data());
  }
}

std::vector<std::vector<uint8_t>> CaseTensors::images() const {
  std::vector<std::vector<uint8_t>> all;
  for (const auto& slot : slots_) all.push_back(slot->after);
  return all;
}

void CaseTensors::CheckUntouched() {
  for (size_t index = 0; index < slots_.size(); ++index) {
    const Slot& slot = *slots_[index];
    std::vector<uint8_t> after = slot.after;
    if (slot.expected) {  // its elements were compared; the rest must be as before
      const int64_t row_bytes = slot.view.cols * BlockBytes(slot.view.dtype);
      for (int64_t r = 0; r < slot.view.rows && row_bytes > 0; ++r) {
        std::memcpy(slot.Element(after, r, 0), slot.Element(slot.before, r, 0), static_cast<size_t>(row_bytes));
      }
    }
    if (after == slot.before) continue;
    const auto at = std::mismatch(after.begin(), after.end(), slot.before.begin()).first - after.begin() - kGuardBytes;
    failures_.push_back(StrCat("tensor ", index, " (", DTypeName(slot.view.dtype), " [", slot.view.rows, ", ",
                               slot.view.cols, "], pitch ", slot.view.pitch, ") was written at byte ", at,
                               slot.expected ? " outside its elements" : " though it is an input"));
  }
}

std::string CheckOpCase(Backend& backend, const OpCase& op_case, std::string* figures) {
  CaseTensors tensors(backend, op_case.name);
  const PreparedCase prepared = op_case.prepare(tensors);
  tensors.UploadAll();
  prepared.launch(backend.ops());
  tensors.DownloadAll();
  prepared.check(tensors);
  tensors.CheckUntouched();
  const auto first = tensors.images();
  tensors.UploadAll();
  prepared.launch(backend.ops());
  tensors.DownloadAll();
  std::string message;
  for (const std::string& failure : tensors.failures()) message += failure + "\n";
  if (tensors.images() != first) message += "a second run of the same inputs gave other bits\n";
  if (figures != nullptr) *figures = tensors.figures();
  return message;
}

std::vector<OpCase> AllOpCases() {
  std::vector<OpCase> cases;
  AddDataCases(cases);
  AddLinearCases(cases);
  AddAdapterCases(cases);
  AddBlockCases(cases);
  AddAttentionCases(cases);
  AddHeadCases(cases);
  AddQuantisedCases(cases);
  return cases;
}

std::vector<std::string> OpCaseNames() {
  std::vector<std::string> names;
  for (const OpCase& op_case : AllOpCases()) names.push_back(op_case.name);
  return names;
}

OpCase FindOpCase(const std::string& name) {
  for (OpCase& op_case : AllOpCases()) {
    if (op_case.name == name) return op_case;
  }
  HONE_CHECK(false, "no case ", name);
  return {};
}

std::string GTestName(const std::string& case_name) {
  std::string name = case_name;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

}  // namespace hone
