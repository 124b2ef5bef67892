// One registry of operation cases, run on any back end (CPU, CUDA) against kernels/reference in double, and timed by
// kernels/bench on the same code. A case makes its tensors in a CaseTensors, launches one operation, and says what must
// have come out. Tensors are surrounded by guard words, outputs start as NaN, and what a case does not expect to change
// (inputs, guards, the gap between a row's end and the pitch) must not change.
//
// Bounds: fp32 outputs by normalised mean square error (NMSE = sum (got - exact)^2 / sum exact^2); bf16 outputs: the
// error's norm is at most 2x (gradients 3x) that of the reference evaluated with bf16 rounding at the operation's
// boundaries.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/reference/matrix.h"

namespace hone {

using Values = std::vector<double>;  // dense, row-major

struct Bound {
  double nmse = 1e-12;     // fp32
  double bf16_factor = 2;  // gradients: 3
};
inline constexpr Bound kTight{1e-13, 2};
inline constexpr Bound kUsual{1e-12, 2};
inline constexpr Bound kGradient{1e-11, 3};

class CaseTensors {
 public:
  // kTiming: values are cheap to make, not normal; nothing can be checked (no reference, forward passes left out).
  enum class Purpose { kChecking, kTiming };
  CaseTensors(Backend& backend, const std::string& seed, Purpose purpose = Purpose::kChecking);
  ~CaseTensors();
  CaseTensors(const CaseTensors&) = delete;
  CaseTensors& operator=(const CaseTensors&) = delete;

  Backend& backend() { return backend_; }
  DType act() const;
  bool timing() const { return purpose_ == Purpose::kTiming; }

  // Tensors of standard normal values times `scale`, rounded to the dtype; `gap` more elements in the pitch.
  Tensor Random(DType dtype, int64_t rows, int64_t cols, double scale = 1, int64_t gap = 0);
  Tensor From(DType dtype, int64_t rows, int64_t cols, const Values& values, int64_t gap = 0);
  Tensor Ints(const std::vector<int32_t>& values);                          // kI32 [1, n]
  Tensor Output(DType dtype, int64_t rows, int64_t cols, int64_t gap = 0);  // NaN; kI32: INT32_MIN
  // Random bytes or given ones on the device, for stored weights.
  const void* RawBytes(const std::vector<uint8_t>& bytes);
  // A random weight in any stored form: valid scales, every code. host: the same, readable here.
  struct Weight {
    WeightView device, host;
  };
  Weight RandomWeight(DType dtype, int64_t rows, int64_t cols, bool nested = true);
  // Segments with their device copy.
  Segments MakeSegments(const std::vector<Segment>& segments);

  // A seeded generator for the case's own choices, the same on every machine.
  double Normal();
  int64_t Below(int64_t n);

  // As they were before the launch, rounded to the dtype.
  Values Before(Tensor tensor) const;
  reference::Matrix<double> MatrixBefore(Tensor tensor) const;

  // --- In a case's check. NaN in `exact` means: as it was before the launch.
  void Expect(const std::string& what, Tensor tensor, const Values& exact, Bound bound = kUsual);
  // `rounded`: the reference evaluated with bf16 rounding inside too; used for bf16 outputs only.
  void Expect(const std::string& what, Tensor tensor, const Values& exact, const Values& rounded, Bound bound);
  void ExpectExactly(const std::string& what, Tensor tensor, const Values& exact);
  // Element i (dense order) of the tensor after the launch.
  void ExpectEach(const std::string& what, Tensor tensor, const std::function<bool(size_t i, double got)>& holds);

  // --- For the runner
  void UploadAll();                                  // (again) what every tensor holds before a launch
  void DownloadAll();                                // after it
  std::vector<std::vector<uint8_t>> images() const;  // all bytes as downloaded
  void CheckUntouched();
  const std::vector<std::string>& failures() const { return failures_; }
  const std::string& figures() const { return figures_; }  // the measured errors, one line

 private:
  struct Slot;
  Slot& Find(Tensor tensor) const;
  Tensor Add(DType dtype, int64_t rows, int64_t cols, int64_t gap, const Values& values);
  Slot& NewSlot(DType dtype, int64_t rows, int64_t cols, int64_t gap);
  Values After(Tensor tensor) const;

  Backend& backend_;
  uint64_t state_;
  Purpose purpose_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<std::unique_ptr<std::vector<uint8_t>>> host_weights_;
  std::vector<std::unique_ptr<std::vector<Segment>>> host_segments_;
  std::vector<std::string> failures_;
  std::string figures_;
};

struct PreparedCase {
  std::function<void(Ops&)> launch;
  std::function<void(CaseTensors&)> check;  // not called by benchmarks
  double flops = 0;                         // products
  double bytes = 0;                         // read plus written, where memory is the limit
};

struct OpCase {
  std::string name;  // "rms_norm/t=7,w=576,g=1": also seeds the values
  std::function<PreparedCase(CaseTensors&)> prepare;
};

// Every case; names are distinct. A case adapts to the back end's activation dtype.
std::vector<OpCase> AllOpCases();
std::vector<std::string> OpCaseNames();
OpCase FindOpCase(const std::string& name);

// Runs a case once against the reference and once more for equal bits. Empty if it holds, otherwise what does not.
// figures, if given, receives the measured errors.
std::string CheckOpCase(Backend& backend, const OpCase& op_case, std::string* figures = nullptr);

// gtest allows letters, digits and underscores in a parameter's name.
std::string GTestName(const std::string& case_name);

}  // namespace hone
