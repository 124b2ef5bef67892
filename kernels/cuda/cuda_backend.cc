// Opens a card: what can be wrong with a machine is said here, once, as a Status with advice.
#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <utility>

#include "kernels/backend.h"
#include "kernels/cuda/budget.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/pinned.h"
#include "kernels/cuda/probe.h"
#include "proto/base/nvml.h"
#include "proto/base/status.h"

namespace hone {
namespace {

std::string Describe(cudaError_t error) { return StrCat(cudaGetErrorName(error), ": ", cudaGetErrorString(error)); }

class CudaBlock : public MemoryBlock {
 public:
  CudaBlock(void* data, uint64_t size) : data_(data), size_(size) {}
  ~CudaBlock() override { cudaFree(data_); }
  void* data() const override { return data_; }
  uint64_t size() const override { return size_; }

 private:
  void* data_;
  uint64_t size_;
};

absl::StatusOr<std::unique_ptr<MemoryBlock>> ReserveOnCard(uint64_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes == 0 ? 1 : bytes);
  if (error == cudaSuccess) return std::make_unique<CudaBlock>(data, bytes);
  cudaGetLastError();  // not sticky: forget it
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  return ResourceExhausted("the card has no room for ", bytes, " bytes (", uint64_t{free_bytes}, " of ",
                           uint64_t{total_bytes}, " free): ", Describe(error));
}

struct StreamDeleter {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using Stream = std::unique_ptr<CUstream_st, StreamDeleter>;

// This process's memory on the card by the driver's account: its own entry, or, where the driver lists processes by ids
// that are not ours (containers), what the card's use has grown by since before the context was made.
class MemoryAccount {
 public:
  explicit MemoryAccount(int device) {
    char bus_id[32] = {};
    if (cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device) == cudaSuccess) nvml_ = NvmlDevice::Open(bus_id);
    if (nvml_ != nullptr) used_before_ = nvml_->UsedBytes();
  }
  std::string driver() const { return nvml_ == nullptr ? "" : nvml_->driver(); }
  uint64_t ProcessBytes() const {
    if (nvml_ == nullptr) return 0;
    if (const uint64_t own = nvml_->ProcessBytes(); own > 0) return own;
    const uint64_t used = nvml_->UsedBytes();
    return used > used_before_ ? used - used_before_ : 0;
  }

 private:
  std::unique_ptr<NvmlDevice> nvml_;
  uint64_t used_before_ = 0;
};

// The parts of the constant workspace (budget.h). Partial sums of narrow products lie where cuBLASLt works.
CudaWorkspace PartsOf(void* workspace) {
  char* base = static_cast<char*>(workspace);
  char* reductions = base + kCudaGemmWorkspaceBytes;
  return {.partials = reinterpret_cast<float*>(reductions),
          .skinny = {reinterpret_cast<float*>(base), int64_t{kCudaGemmWorkspaceBytes},
                     reinterpret_cast<unsigned*>(reductions + kCudaReductionBytes)}};
}

class CudaBackend : public Backend {
 public:
  CudaBackend(std::string name, MemoryAccount account, Stream stream, std::unique_ptr<MemoryBlock> workspace,
              std::unique_ptr<cuda::Gemm> gemm, DType activation_dtype)
      : name_(std::move(name)),
        account_(std::move(account)),
        stream_(std::move(stream)),
        workspace_(std::move(workspace)),
        ops_(activation_dtype, stream_.get(), std::move(gemm), PartsOf(workspace_->data())) {}
  ~CudaBackend() override { cudaStreamSynchronize(stream_.get()); }

  Ops& ops() override { return ops_; }
  void BeginWarmUp() override { ops_.gemm().BeginWarmUp(); }
  void EndWarmUp() override { ops_.gemm().EndWarmUp(); }
  absl::Status BreakForTests() override {
    cuda::LaunchIllegalWrite(stream_.get());
    return absl::OkStatus();
  }
  std::string name() const override { return name_; }
  std::string driver() const override { return account_.driver(); }
  uint64_t ProcessBytes() const override { return account_.ProcessBytes(); }
  uint64_t FreeBytes() const override {
    size_t free_bytes = 0, total_bytes = 0;
    return cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess ? free_bytes : 0;
  }
  absl::StatusOr<std::unique_ptr<MemoryBlock>> Reserve(uint64_t bytes) override { return ReserveOnCard(bytes); }
  absl::StatusOr<std::unique_ptr<MemoryBlock>> ReservePinned(uint64_t bytes) override {
    return cuda::ReservePinned(bytes);
  }

 private:
  std::string name_;
  MemoryAccount account_;
  Stream stream_;
  std::unique_ptr<MemoryBlock> workspace_;
  CudaOps ops_;
};

absl::Status CheckDriver(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) {
      return FailedPrecondition(
          "no NVIDIA driver was found on this machine; install driver 580 or newer (CUDA 13 needs it), or "
          "run with device: cpu");
    }
    return FailedPrecondition("the NVIDIA driver is too old: it serves CUDA ", driver / 1000, ".", driver % 1000 / 10,
                              ", this build needs CUDA ", CUDART_VERSION / 1000,
                              ".0 (driver 580 or newer); update the driver, or run with device: cpu");
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return FailedPrecondition(
        "the NVIDIA driver sees no card (CUDA_VISIBLE_DEVICES may hide it); run with device: cpu");
  }
  if (error != cudaSuccess) return FailedPrecondition("CUDA does not start: ", Describe(error));
  if (device < 0 || device >= count) {
    return InvalidArgument("device ", device, ": this machine has CUDA devices 0 to ", count - 1);
  }
  return absl::OkStatus();
}

absl::Status TooOld(const cudaDeviceProp& card) {
  return Unimplemented(card.name, " has compute capability ", card.major, ".", card.minor,
                       "; the CUDA back end needs 8.0 (Ampere) or newer; run with device: cpu");
}

absl::Status CheckCard(const cudaDeviceProp& card) {
  if (card.major < 8) return TooOld(card);
  const cudaError_t error = cuda::ProbeKernelImage();
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();
    return FailedPrecondition("this build holds no code for ", card.name,
                              "; configure with -DCMAKE_CUDA_ARCHITECTURES=", card.major, card.minor,
                              " and build again, or run with device: cpu");
  }
  if (error != cudaSuccess) return FailedPrecondition(card.name, " cannot be used: ", Describe(error));
  return absl::OkStatus();
}

}  // namespace

bool CudaBuilt() { return true; }

absl::StatusOr<std::string> CudaCardName(int device) {
  HONE_RETURN_IF_ERROR(CheckDriver(device));
  cudaDeviceProp card{};
  const cudaError_t error = cudaGetDeviceProperties(&card, device);
  if (error != cudaSuccess) return FailedPrecondition("CUDA device ", device, ": ", Describe(error));
  if (card.major < 8) return TooOld(card);
  return std::string(card.name);
}

absl::StatusOr<CudaCard> DescribeCuda(int device) {
  CudaCard card;
  HONE_ASSIGN_OR_RETURN(card.name, CudaCardName(device));
  char bus_id[32] = {};
  if (cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), device) != cudaSuccess) return card;
  const std::unique_ptr<NvmlDevice> nvml = NvmlDevice::Open(bus_id);
  if (nvml == nullptr) return card;
  card.driver = nvml->driver();
  if (const auto memory = nvml->memory(); memory.has_value()) card.free_bytes = memory->free;
  return card;
}

absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(const CudaOptions& options) {
  HONE_CHECK(options.activation_dtype == DType::kF32 || options.activation_dtype == DType::kBF16,
             DTypeName(options.activation_dtype));
  HONE_RETURN_IF_ERROR(CheckDriver(options.device));
  MemoryAccount account(options.device);  // before the context
  cudaError_t error = cudaSetDevice(options.device);
  if (error != cudaSuccess)
    return FailedPrecondition("CUDA device ", options.device, " cannot be used: ", Describe(error));
  cudaDeviceProp card{};
  error = cudaGetDeviceProperties(&card, options.device);
  if (error != cudaSuccess) return FailedPrecondition("CUDA device ", options.device, ": ", Describe(error));
  HONE_RETURN_IF_ERROR(CheckCard(card));

  cudaStream_t raw_stream = nullptr;
  error = cudaStreamCreateWithFlags(&raw_stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return FailedPrecondition(card.name, ": no stream: ", Describe(error));
  Stream stream(raw_stream);
  HONE_ASSIGN_OR_RETURN(auto workspace, ReserveOnCard(kCudaWorkspaceBytes));
  error = cudaMemsetAsync(workspace->data(), 0, kCudaWorkspaceBytes, stream.get());  // tickets begin at 0
  if (error != cudaSuccess)
    return FailedPrecondition(card.name, ": the workspace cannot be written: ", Describe(error));
  const cuda::Gemm::Options tuning{options.tuning_cache, StrCat(card.name, ", ", card.multiProcessorCount,
                                                                " processors, driver ", account.driver())};
  HONE_ASSIGN_OR_RETURN(auto gemm, cuda::Gemm::Open(workspace->data(), kCudaGemmWorkspaceBytes, tuning));
  return std::make_unique<CudaBackend>(card.name, std::move(account), std::move(stream), std::move(workspace),
                                       std::move(gemm), options.activation_dtype);
}

}  // namespace hone
