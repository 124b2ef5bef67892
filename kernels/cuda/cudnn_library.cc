#include "kernels/cuda/cudnn_library.h"

#include <dlfcn.h>

#include <string_view>
#include <utility>

#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone::cuda {
namespace {

constexpr char kLibrary[] = "libcudnn.so.9";
constexpr int kMaxConfigs = 16;
constexpr size_t kDigest = 64;  // a saved plan: its digest, a line's end, cuDNN's text

template <typename F>
bool Find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace

std::string CudnnLibrary::Error(const char* what, int status) const {
  char text[1024] = {};
  if (last_error_ != nullptr) last_error_(text, sizeof(text) - 1);
  return StrCat("cuDNN ", version_, ": ", what, " (status ", status, ") ", std::string_view(text));
}

absl::StatusOr<std::unique_ptr<CudnnLibrary>> CudnnLibrary::Open() {
  std::unique_ptr<CudnnLibrary> cudnn(new CudnnLibrary());
  cudnn->library_ = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (cudnn->library_ == nullptr) {
    const char* why = dlerror();
    return absl::UnavailableError(
        StrCat("cuDNN 9 was not found (attention then uses Hone's own kernels): ", why != nullptr ? why : kLibrary));
  }
  void* library = cudnn->library_;
  if (!Find(library, "cudnnGetVersion", cudnn->get_version_) || !Find(library, "cudnnCreate", cudnn->create_) ||
      !Find(library, "cudnnDestroy", cudnn->destroy_) || !Find(library, "cudnnSetStream", cudnn->set_stream_) ||
      !Find(library, "cudnnGetLastErrorString", cudnn->last_error_) ||
      !Find(library, "cudnnBackendCreateDescriptor", cudnn->create_descriptor_) ||
      !Find(library, "cudnnBackendDestroyDescriptor", cudnn->destroy_descriptor_) ||
      !Find(library, "cudnnBackendSetAttribute", cudnn->set_attribute_) ||
      !Find(library, "cudnnBackendGetAttribute", cudnn->get_attribute_) ||
      !Find(library, "cudnnBackendFinalize", cudnn->finalize_) ||
      !Find(library, "cudnnBackendExecute", cudnn->execute_)) {
    return FailedPrecondition(kLibrary, " lacks a function of cuDNN 9's backend interface");
  }
  cudnn->version_ = static_cast<int64_t>(cudnn->get_version_());
  if (cudnn->version_ < cudnn::kOldestVersion || cudnn->version_ >= 100000) {
    return FailedPrecondition(kLibrary, " is version ", cudnn->version_, "; 9.10 or a later 9 is needed");
  }
  const int status = cudnn->create_(&cudnn->handle_);
  if (status != 0) return FailedPrecondition(cudnn->Error("does not start", status));
  return cudnn;
}

CudnnLibrary::~CudnnLibrary() {
  if (handle_ != nullptr) destroy_(handle_);
  // The library stays loaded: its parts keep threads and state that do not survive being unloaded.
}

CudnnPlan::~CudnnPlan() {
  for (auto it = descriptors_.rbegin(); it != descriptors_.rend(); ++it) library_.destroy_descriptor_(*it);
}

std::unique_ptr<CudnnPlan> CudnnPlan::Load(const CudnnLibrary& library, const std::string& path) {
  constexpr uint64_t kMost = uint64_t{16} << 20;  // a plan has about 130 kB
  absl::StatusOr<std::string> text = ReadFile(path, kMost);
  if (!text.ok() || text->size() < kDigest + 1) return nullptr;
  const std::string_view body = std::string_view(*text).substr(kDigest + 1);
  if (Sha256Hex(body) != std::string_view(*text).substr(0, kDigest)) return nullptr;
  std::unique_ptr<CudnnPlan> plan(new CudnnPlan(library));
  void* node = nullptr;
  void* handle = library.handle_;
  int64_t count = 0, bytes = 0;
  if (library.create_descriptor_(cudnn::kExecutionPlan, &node) != 0) return nullptr;
  plan->descriptors_.push_back(node);
  if (library.set_attribute_(node, cudnn::kPlanHandle, cudnn::kTypeHandle, 1, &handle) != 0 ||
      library.set_attribute_(node, cudnn::kPlanJson, cudnn::kTypeChar, static_cast<int64_t>(body.size()),
                             body.data()) != 0 ||
      library.finalize_(node) != 0 ||
      library.get_attribute_(node, cudnn::kPlanWorkspaceSize, cudnn::kTypeInt64, 1, &count, &bytes) != 0) {
    return nullptr;
  }
  plan->plan_ = node;
  plan->workspace_bytes_ = static_cast<uint64_t>(bytes);
  return plan;
}

void CudnnPlan::Save(const std::string& path) const {
  int64_t size = 0;
  if (library_.get_attribute_(plan_, cudnn::kPlanJson, cudnn::kTypeChar, 0, &size, nullptr) != 0 || size <= 0) return;
  std::string text(static_cast<size_t>(size), ' ');
  if (library_.get_attribute_(plan_, cudnn::kPlanJson, cudnn::kTypeChar, size, &size, text.data()) != 0) return;
  (void)WriteFileDurably(path, StrCat(Sha256Hex(text), "\n", text));
}

absl::Status CudnnPlan::Run(std::span<const Binding> bindings, void* workspace, cudaStream_t stream) const {
  constexpr size_t kMost = 32;
  HONE_CHECK(bindings.size() <= kMost, bindings.size());
  int64_t ids[kMost];
  void* pointers[kMost];
  for (size_t i = 0; i < bindings.size(); ++i) ids[i] = bindings[i].id, pointers[i] = bindings[i].pointer;
  const int64_t count = static_cast<int64_t>(bindings.size());
  int status = library_.set_stream_(library_.handle_, stream);
  void* pack = nullptr;
  if (status == 0) status = library_.create_descriptor_(cudnn::kVariantPack, &pack);
  if (status == 0) {
    status = library_.set_attribute_(pack, cudnn::kPackPointers, cudnn::kTypeVoidPointer, count, pointers);
  }
  if (status == 0) status = library_.set_attribute_(pack, cudnn::kPackUniqueIds, cudnn::kTypeInt64, count, ids);
  if (status == 0) {
    status = library_.set_attribute_(pack, cudnn::kPackWorkspace, cudnn::kTypeVoidPointer, 1, &workspace);
  }
  if (status == 0) status = library_.finalize_(pack);
  if (status == 0) status = library_.execute_(library_.handle_, plan_, pack);
  absl::Status result;
  if (status != 0) result = absl::InternalError(library_.Error("a plan does not run", status));
  if (pack != nullptr) library_.destroy_descriptor_(pack);
  return result;
}

CudnnGraph::~CudnnGraph() {
  for (auto it = descriptors_.rbegin(); it != descriptors_.rend(); ++it) library_.destroy_descriptor_(*it);
}

CudnnGraph::Node CudnnGraph::Make(cudnn::DescriptorType type) {
  if (!error_.empty()) return nullptr;
  void* node = nullptr;
  const int status = library_.create_descriptor_(type, &node);
  if (status != 0) {
    error_ = library_.Error(StrCat("descriptor ", int{type}).c_str(), status);
    return nullptr;
  }
  descriptors_.push_back(node);
  return node;
}

void CudnnGraph::Set(Node node, cudnn::Attribute attribute, cudnn::AttributeType type, int64_t count,
                     const void* value) {
  if (!error_.empty()) return;
  const int status = library_.set_attribute_(node, attribute, type, count, value);
  if (status != 0) error_ = library_.Error(StrCat("attribute ", int{attribute}).c_str(), status);
}

void CudnnGraph::SetNode(Node node, cudnn::Attribute attribute, Node value) {
  if (value != nullptr) Set(node, attribute, cudnn::kTypeDescriptor, 1, &value);
}

void CudnnGraph::SetInt(Node node, cudnn::Attribute attribute, cudnn::AttributeType type, int value) {
  Set(node, attribute, type, 1, &value);
}

void CudnnGraph::Finalize(Node node, const char* what) {
  if (!error_.empty()) return;
  const int status = library_.finalize_(node);
  if (status != 0) error_ = library_.Error(what, status);
}

CudnnGraph::Node CudnnGraph::Tensor(int64_t id, cudnn::DataType type, const Shape& shape, bool is_virtual,
                                    bool by_value, Node ragged) {
  constexpr int64_t kAlignment = 16;
  Node node = Make(cudnn::kTensor);
  SetInt(node, cudnn::kTensorDataType, cudnn::kTypeDataType, type);
  Set(node, cudnn::kTensorDimensions, cudnn::kTypeInt64, 4, shape.dims);
  Set(node, cudnn::kTensorStrides, cudnn::kTypeInt64, 4, shape.strides);
  Set(node, cudnn::kTensorUniqueId, cudnn::kTypeInt64, 1, &id);
  Set(node, cudnn::kTensorAlignment, cudnn::kTypeInt64, 1, &kAlignment);
  if (is_virtual) Set(node, cudnn::kTensorIsVirtual, cudnn::kTypeBoolean, 1, &is_virtual);
  if (by_value) Set(node, cudnn::kTensorIsByValue, cudnn::kTypeBoolean, 1, &by_value);
  SetNode(node, cudnn::kTensorRaggedOffset, ragged);
  Finalize(node, "tensor");
  return node;
}

CudnnGraph::Node CudnnGraph::Input(int64_t id, cudnn::DataType type, const Shape& shape, Node ragged_offsets) {
  return Tensor(id, type, shape, false, false, ragged_offsets);
}

CudnnGraph::Node CudnnGraph::HostValue(int64_t id) {
  return Tensor(id, cudnn::kFloat, {{1, 1, 1, 1}, {1, 1, 1, 1}}, false, true, nullptr);
}

CudnnGraph::Node CudnnGraph::Virtual(cudnn::DataType type, const Shape& shape, Node ragged_offsets) {
  return Tensor(next_virtual_id_++, type, shape, true, false, ragged_offsets);
}

CudnnGraph::Node CudnnGraph::Pointwise(cudnn::PointwiseMode mode, cudnn::DataType precision, Node x, Node b, Node y,
                                       Node t, int64_t axis) {
  Node what = Make(cudnn::kPointwise);
  SetInt(what, cudnn::kPointwiseMode, cudnn::kTypePointwiseMode, mode);
  SetInt(what, cudnn::kPointwisePrecision, cudnn::kTypeDataType, precision);
  if (axis >= 0) Set(what, cudnn::kPointwiseAxis, cudnn::kTypeInt64, 1, &axis);
  Finalize(what, "pointwise");
  Node node = Make(cudnn::kOperationPointwise);
  SetNode(node, cudnn::kOperationPointwiseDescriptor, what);
  SetNode(node, cudnn::kOperationPointwiseX, x);
  SetNode(node, cudnn::kOperationPointwiseB, b);
  SetNode(node, cudnn::kOperationPointwiseT, t);
  SetNode(node, cudnn::kOperationPointwiseY, y);
  Finalize(node, "pointwise operation");
  operations_.push_back(node);
  return y;
}

CudnnGraph::Node CudnnGraph::Reduce(cudnn::ReductionOperator op, Node x, Node y) {
  const bool deterministic = false;  // this attribute is for engines that are not attention's; those refuse it
  Node what = Make(cudnn::kReduction);
  SetInt(what, cudnn::kReductionPrecision, cudnn::kTypeDataType, cudnn::kFloat);
  SetInt(what, cudnn::kReductionOperator, cudnn::kTypeReductionOperator, op);
  Set(what, cudnn::kReductionDeterministic, cudnn::kTypeBoolean, 1, &deterministic);
  Finalize(what, "reduction");
  Node node = Make(cudnn::kOperationReduction);
  SetNode(node, cudnn::kOperationReductionDescriptor, what);
  SetNode(node, cudnn::kOperationReductionX, x);
  SetNode(node, cudnn::kOperationReductionY, y);
  Finalize(node, "reduction operation");
  operations_.push_back(node);
  return y;
}

CudnnGraph::Node CudnnGraph::Matmul(Node a, Node b, Node c, Node m, Node n, Node k) {
  Node what = Make(cudnn::kMatmul);
  SetInt(what, cudnn::kMatmulPrecision, cudnn::kTypeDataType, cudnn::kFloat);
  Finalize(what, "matmul");
  Node node = Make(cudnn::kOperationMatmul);
  SetNode(node, cudnn::kOperationMatmulA, a);
  SetNode(node, cudnn::kOperationMatmulB, b);
  SetNode(node, cudnn::kOperationMatmulC, c);
  SetNode(node, cudnn::kOperationMatmulDescriptor, what);
  SetNode(node, cudnn::kOperationMatmulM, m);
  SetNode(node, cudnn::kOperationMatmulN, n);
  SetNode(node, cudnn::kOperationMatmulK, k);
  Finalize(node, "matmul operation");
  operations_.push_back(node);
  return c;
}

CudnnGraph::Node CudnnGraph::Reshape(Node x, Node y) {
  Node node = Make(cudnn::kOperationReshape);
  SetNode(node, cudnn::kOperationReshapeX, x);
  SetNode(node, cudnn::kOperationReshapeY, y);
  Finalize(node, "reshape operation");
  operations_.push_back(node);
  return y;
}

void CudnnGraph::ReadNotes(Node config, CudnnPlan& plan) const {
  void* engine = nullptr;
  int64_t count = 0;
  int notes[16] = {};
  plan.engine_ = -1, plan.compiles_at_run_time_ = false;
  if (library_.create_descriptor_(cudnn::kEngine, &engine) != 0) return;
  if (library_.get_attribute_(config, cudnn::kConfigEngine, cudnn::kTypeDescriptor, 1, &count, &engine) == 0) {
    library_.get_attribute_(engine, cudnn::kEngineIndex, cudnn::kTypeInt64, 1, &count, &plan.engine_);
    count = 0;
    library_.get_attribute_(engine, cudnn::kEngineBehaviorNote, cudnn::kTypeBehaviorNote, 16, &count, notes);
    for (int64_t i = 0; i < count && i < 16; ++i) {
      plan.compiles_at_run_time_ |= notes[i] == cudnn::kNoteRuntimeCompilation;
    }
  }
  library_.destroy_descriptor_(engine);
}

bool CudnnGraph::TryConfig(Node config, CudnnPlan& plan) const {
  void* node = nullptr;
  if (library_.create_descriptor_(cudnn::kExecutionPlan, &node) != 0) return false;
  void* handle = library_.handle_;
  int64_t bytes = 0, count = 0;
  if (library_.set_attribute_(node, cudnn::kPlanHandle, cudnn::kTypeHandle, 1, &handle) != 0 ||
      library_.set_attribute_(node, cudnn::kPlanConfig, cudnn::kTypeDescriptor, 1, &config) != 0 ||
      library_.finalize_(node) != 0 ||
      library_.get_attribute_(node, cudnn::kPlanWorkspaceSize, cudnn::kTypeInt64, 1, &count, &bytes) != 0) {
    library_.destroy_descriptor_(node);
    return false;
  }
  plan.plan_ = node;
  plan.workspace_bytes_ = static_cast<uint64_t>(bytes);
  return true;
}

absl::StatusOr<std::unique_ptr<CudnnPlan>> CudnnGraph::Build() {
  void* handle = library_.handle_;
  Node graph = Make(cudnn::kOperationGraph);
  Set(graph, cudnn::kGraphOperations, cudnn::kTypeDescriptor, static_cast<int64_t>(operations_.size()),
      operations_.data());
  Set(graph, cudnn::kGraphHandle, cudnn::kTypeHandle, 1, &handle);
  Finalize(graph, "graph");
  Node heuristic = Make(cudnn::kEngineHeuristic);
  SetNode(heuristic, cudnn::kHeuristicGraph, graph);
  SetInt(heuristic, cudnn::kHeuristicMode, cudnn::kTypeHeuristicMode, cudnn::kHeuristicModeA);
  Finalize(heuristic, "heuristic");
  std::vector<void*> configs;
  for (int i = 0; i < kMaxConfigs; ++i) configs.push_back(Make(cudnn::kEngineConfig));
  if (!error_.empty()) return FailedPrecondition(error_);
  int64_t found = 0;
  const int status = library_.get_attribute_(heuristic, cudnn::kHeuristicResults, cudnn::kTypeDescriptor, kMaxConfigs,
                                             &found, configs.data());
  if (status != 0) return FailedPrecondition(library_.Error("no engine takes the graph", status));
  std::unique_ptr<CudnnPlan> plan(new CudnnPlan(library_));
  for (int64_t i = 0; i < found && i < kMaxConfigs; ++i) {
    Node config = configs[static_cast<size_t>(i)];
    ReadNotes(config, *plan);
    if (!TryConfig(config, *plan)) continue;
    plan->configs_ = found;
    plan->descriptors_ = std::move(descriptors_);
    descriptors_.clear();
    plan->descriptors_.push_back(plan->plan_);
    return plan;
  }
  return FailedPrecondition(library_.Error(StrCat("none of ", found, " engines takes the graph").c_str(), status));
}

}  // namespace hone::cuda
