#include "engine/worker/device.h"

#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "proto/base/file.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// A card's name as a part of a file's name.
std::string FileNameOf(const std::string& name) {
  std::string out;
  for (const char c : name) out += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
  return out;
}

// An absolute path, as the XDG specification demands; anything else is as if it were not set.
std::string AbsoluteVariable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && value[0] == '/' ? value : "";
}

}  // namespace

absl::StatusOr<DeviceChoice> ResolveDevice(const DeviceChoice& wanted) {
  DeviceChoice choice = wanted;
  if (choice.device == v1::DEVICE_CUDA && !CudaBuilt()) {
    return FailedPrecondition(
        "run.device: this build has no CUDA back end; write cpu or auto, or build with HONE_CUDA=ON");
  }
  if (choice.device == v1::DEVICE_UNSPECIFIED || choice.device == v1::DEVICE_AUTO) {
    choice.device = CudaCardName().ok() ? v1::DEVICE_CUDA : v1::DEVICE_CPU;
  }
  if (choice.device == v1::DEVICE_CUDA) {
    const auto card = CudaCardName();
    if (!card.ok()) return Annotate(card.status(), "run.device");
  }
  if (choice.precision == v1::PRECISION_UNSPECIFIED || choice.precision == v1::PRECISION_AUTO) {
    choice.precision = choice.device == v1::DEVICE_CUDA ? v1::PRECISION_BF16 : v1::PRECISION_FP32;
  }
  if (choice.device == v1::DEVICE_CPU && choice.precision == v1::PRECISION_BF16) {
    return InvalidArgument("run.precision: bf16 is computed on CUDA only; write fp32 or auto for the CPU");
  }
  return choice;
}

std::string DescribeDevice(const DeviceChoice& resolved) {
  const auto card = CudaCardName();
  if (resolved.device == v1::DEVICE_CUDA) return card.ok() ? *card : "cuda";
  const unsigned threads =
      resolved.threads > 0 ? static_cast<unsigned>(resolved.threads) : std::thread::hardware_concurrency();
  const std::string cpu = StrCat("cpu (", threads, " threads)");
  return card.ok() || !CudaBuilt() ? cpu : StrCat(cpu, "; no CUDA: ", card.status().message());
}

std::string MachineCacheFolder(const std::string& reference_cache_dir) {
  std::string folder;
  if (!reference_cache_dir.empty()) {
    folder = (std::filesystem::path(reference_cache_dir).parent_path() / "machine").string();
  } else if (const std::string cache = AbsoluteVariable("XDG_CACHE_HOME"); !cache.empty()) {
    folder = cache + "/hone";
  } else if (const std::string home = AbsoluteVariable("HOME"); !home.empty()) {
    folder = home + "/.cache/hone";
  }
  return !folder.empty() && MakeDirectories(folder).ok() ? folder : "";
}

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const DeviceChoice& resolved) {
  if (resolved.device != v1::DEVICE_CUDA) return OpenCpu({resolved.threads});
  CudaOptions options;
  options.activation_dtype = resolved.precision == v1::PRECISION_FP32 ? DType::kF32 : DType::kBF16;
  if (!resolved.cache_folder.empty()) {
    HONE_ASSIGN_OR_RETURN(const std::string card, CudaCardName());
    options.tuning_cache = StrCat(resolved.cache_folder, "/products-", FileNameOf(card));
  }
  return OpenCuda(options);
}

}  // namespace hone
