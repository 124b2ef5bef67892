// hone.v1.Models: the registry of models by path, and generation in a worker of its own beside what trains.
#pragma once

#include <mutex>
#include <string>

#include "server/services.h"

namespace hone {

class ModelsService final : public v1::Models::CallbackService {
 public:
  explicit ModelsService(ServiceContext* context) : context_(context) {}

  grpc::ServerUnaryReactor* ImportModel(grpc::CallbackServerContext*, const v1::ImportModelRequest*,
                                        v1::Model*) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext*, const v1::ListModelsRequest*,
                                       v1::ListModelsResponse*) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext*, const v1::GetModelRequest*, v1::Model*) override;
  grpc::ServerUnaryReactor* DeleteModel(grpc::CallbackServerContext*, const v1::DeleteModelRequest*,
                                        v1::DeleteModelResponse*) override;
  grpc::ServerWriteReactor<v1::GenerateModelResponse>* Generate(grpc::CallbackServerContext*,
                                                                const v1::GenerateModelRequest*) override;

 private:
  // The folder of a quantised copy of request.path(), written unless it is there.
  absl::StatusOr<std::string> QuantisedCopy(const v1::ImportModelRequest& request, const std::string& id,
                                            const Admission::Cancelled& cancelled);
  absl::Status Import(const v1::ImportModelRequest& request, const Admission::Cancelled& cancelled, v1::Model* model);

  ServiceContext* context_;
  std::mutex quantising_;
};

// [a-z0-9][a-z0-9._-]{0,62}
bool IsModelId(std::string_view id);
// An id made from the last part of a path: lower case, without .gguf, other characters as "-".
std::string ModelIdFromPath(std::string_view path);

}  // namespace hone
