// cuDNN 9 as a library that may be there: found at run time (libcudnn.so.9), never linked, and driven through its
// backend C interface, whose symbols and enumerators are stable within major version 9, so that no header of NVIDIA's
// is needed to build. Here: the library, a graph under construction, a finished plan. Not here: what is computed
// (cudnn_attention.h). Constants are those of cudnn_graph.h; tests/kernels/cudnn_attention_test.cc compares them where
// that header is installed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hone::cuda {

namespace cudnn {
inline constexpr int kOldestVersion = 91000;  // masks may hold -infinity from 9.10 on

enum DataType : int { kFloat = 0, kInt32 = 4, kBFloat16 = 9, kInt64 = 10, kBoolean = 11 };
enum AttributeType : int {
  kTypeHandle = 0,
  kTypeDataType = 1,
  kTypeBoolean = 2,
  kTypeInt64 = 3,
  kTypeFloat = 4,
  kTypeVoidPointer = 6,
  kTypeHeuristicMode = 8,
  kTypeNumericalNote = 11,
  kTypePointwiseMode = 14,
  kTypeDescriptor = 15,
  kTypeReductionOperator = 18,
  kTypeBehaviorNote = 19,
  kTypeChar = 24,
};
enum DescriptorType : int {
  kPointwise = 0,
  kEngine = 2,
  kEngineConfig = 3,
  kEngineHeuristic = 4,
  kExecutionPlan = 5,
  kOperationPointwise = 13,
  kOperationGraph = 15,
  kVariantPack = 16,
  kTensor = 17,
  kMatmul = 18,
  kOperationMatmul = 19,
  kReduction = 21,
  kOperationReduction = 22,
  kOperationReshape = 31,
};
enum Attribute : int {
  kPointwiseMode = 0,
  kPointwisePrecision = 1,
  kPointwiseAxis = 9,
  kHeuristicMode = 200,
  kHeuristicGraph = 201,
  kHeuristicResults = 202,
  kConfigEngine = 300,
  kPlanHandle = 400,
  kPlanConfig = 401,
  kPlanWorkspaceSize = 402,
  kPlanJson = 405,
  kOperationPointwiseDescriptor = 750,
  kOperationPointwiseX = 751,
  kOperationPointwiseB = 752,
  kOperationPointwiseY = 753,
  kOperationPointwiseT = 758,
  kGraphHandle = 800,
  kGraphOperations = 801,
  kTensorAlignment = 900,
  kTensorDataType = 901,
  kTensorDimensions = 902,
  kTensorStrides = 903,
  kTensorUniqueId = 906,
  kTensorIsVirtual = 907,
  kTensorIsByValue = 908,
  kTensorRaggedOffset = 913,
  kPackUniqueIds = 1000,
  kPackPointers = 1001,
  kPackWorkspace = 1003,
  kEngineIndex = 1301,
  kEngineNumericalNote = 1303,
  kEngineBehaviorNote = 1305,
  kMatmulPrecision = 1500,
  kOperationMatmulA = 1520,
  kOperationMatmulB = 1521,
  kOperationMatmulC = 1522,
  kOperationMatmulDescriptor = 1523,
  kOperationMatmulM = 1525,
  kOperationMatmulN = 1526,
  kOperationMatmulK = 1527,
  kReductionOperator = 1600,
  kReductionPrecision = 1601,
  kReductionDeterministic = 1602,
  kOperationReductionX = 1610,
  kOperationReductionY = 1611,
  kOperationReductionDescriptor = 1612,
  kOperationReshapeX = 2200,
  kOperationReshapeY = 2201,
};
enum PointwiseMode : int {
  kAdd = 0,
  kMul = 1,
  kDiv = 6,
  kSub = 9,
  kExp = 13,
  kLog = 15,
  kGreaterOrEqual = 303,
  kLess = 304,
  kAnd = 400,
  kGenIndex = 501,
  kSelect = 601,
};
enum ReductionOperator : int { kReduceAdd = 0, kReduceMax = 3 };
enum : int { kHeuristicModeA = 3, kNoteNondeterministic = 4, kNoteRuntimeCompilation = 0 };
}  // namespace cudnn

// The loaded library and its handle on the current device. Everything made from it must die before it.
class CudnnLibrary {
 public:
  // Unavailable: no library; FailedPrecondition: one that is too old or does not start here. The text says what to do.
  static absl::StatusOr<std::unique_ptr<CudnnLibrary>> Open();
  ~CudnnLibrary();
  CudnnLibrary(const CudnnLibrary&) = delete;
  CudnnLibrary& operator=(const CudnnLibrary&) = delete;

  int64_t version() const { return version_; }  // 91900: 9.19.0

 private:
  friend class CudnnGraph;
  friend class CudnnPlan;
  CudnnLibrary() = default;
  std::string Error(const char* what, int status) const;

  void* library_ = nullptr;
  void* handle_ = nullptr;
  int64_t version_ = 0;
  int (*create_)(void**) = nullptr;
  int (*destroy_)(void*) = nullptr;
  int (*set_stream_)(void*, cudaStream_t) = nullptr;
  size_t (*get_version_)() = nullptr;
  void (*last_error_)(char*, size_t) = nullptr;
  int (*create_descriptor_)(int, void**) = nullptr;
  int (*destroy_descriptor_)(void*) = nullptr;
  int (*set_attribute_)(void*, int, int, int64_t, const void*) = nullptr;
  int (*get_attribute_)(void*, int, int, int64_t, int64_t*, void*) = nullptr;
  int (*finalize_)(void*) = nullptr;
  int (*execute_)(void*, void*, void*) = nullptr;
};

// What cuDNN chose for a graph, ready to run.
class CudnnPlan {
 public:
  ~CudnnPlan();
  CudnnPlan(const CudnnPlan&) = delete;
  CudnnPlan& operator=(const CudnnPlan&) = delete;

  // As text, with its machine code, for the same card and library. Load: null unless the file is there and cuDNN takes
  // it. Save: a file that cannot be written is no error.
  static std::unique_ptr<CudnnPlan> Load(const CudnnLibrary& library, const std::string& path);
  void Save(const std::string& path) const;

  uint64_t workspace_bytes() const { return workspace_bytes_; }
  bool compiles_at_run_time() const { return compiles_at_run_time_; }  // by the engine's own notes
  int64_t engine() const { return engine_; }
  int64_t configs() const { return configs_; }  // how many configurations cuDNN offered
  // Pointers by unique id: device memory, or a host value where the tensor was declared one.
  struct Binding {
    int64_t id;
    void* pointer;
  };
  absl::Status Run(std::span<const Binding> bindings, void* workspace, cudaStream_t stream) const;

 private:
  friend class CudnnGraph;
  explicit CudnnPlan(const CudnnLibrary& library) : library_(library) {}

  const CudnnLibrary& library_;
  std::vector<void*> descriptors_;  // all that the plan refers to
  void* plan_ = nullptr;
  uint64_t workspace_bytes_ = 0;
  int64_t engine_ = -1, configs_ = 0;
  bool compiles_at_run_time_ = false;
};

// A graph of tensors and operations under construction. The first error sticks and comes out of Build. Tensors have
// four dimensions [batch, head, row, column].
class CudnnGraph {
 public:
  struct Shape {
    int64_t dims[4];
    int64_t strides[4];
  };
  using Node = void*;  // a descriptor; null after an error

  explicit CudnnGraph(const CudnnLibrary& library) : library_(library) {}
  ~CudnnGraph();
  CudnnGraph(const CudnnGraph&) = delete;
  CudnnGraph& operator=(const CudnnGraph&) = delete;

  Node Input(int64_t id, cudnn::DataType type, const Shape& shape, Node ragged_offsets = nullptr);  // outputs too
  Node HostValue(int64_t id);                                                                      // one float
  Node Virtual(cudnn::DataType type, const Shape& shape, Node ragged_offsets = nullptr);

  // y <- mode(x, b), t the predicate of kSelect; axis for kGenIndex.
  Node Pointwise(cudnn::PointwiseMode mode, cudnn::DataType precision, Node x, Node b, Node y, Node t = nullptr,
                 int64_t axis = -1);
  Node Reduce(cudnn::ReductionOperator op, Node x, Node y);
  // Lengths [batch, 1, 1, 1] i32 that cut m, n or k to each batch's own.
  Node Matmul(Node a, Node b, Node c, Node m, Node n, Node k);
  Node Reshape(Node x, Node y);  // y a view of x by its own dimensions and strides

  absl::StatusOr<std::unique_ptr<CudnnPlan>> Build();

 private:
  Node Make(cudnn::DescriptorType type);
  void Set(Node node, cudnn::Attribute attribute, cudnn::AttributeType type, int64_t count, const void* value);
  void SetNode(Node node, cudnn::Attribute attribute, Node value);
  void SetInt(Node node, cudnn::Attribute attribute, cudnn::AttributeType type, int value);
  void Finalize(Node node, const char* what);
  Node Tensor(int64_t id, cudnn::DataType type, const Shape& shape, bool is_virtual, bool by_value, Node ragged);
  void ReadNotes(Node config, CudnnPlan& plan) const;
  bool TryConfig(Node config, CudnnPlan& plan) const;

  const CudnnLibrary& library_;
  std::vector<void*> descriptors_;
  std::vector<void*> operations_;
  int64_t next_virtual_id_ = 1000;
  std::string error_;
};

}  // namespace hone::cuda
