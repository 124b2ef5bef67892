// hone.v1.Datasets: uploads by digest, and the data report of a spec.
#pragma once

#include "server/services.h"

namespace hone {

class DatasetsService final : public v1::Datasets::CallbackService {
 public:
  explicit DatasetsService(ServiceContext* context) : context_(context) {}

  grpc::ServerUnaryReactor* GetBlob(grpc::CallbackServerContext*, const v1::GetBlobRequest*,
                                    v1::GetBlobResponse*) override;
  grpc::ServerReadReactor<v1::UploadBlobRequest>* UploadBlob(grpc::CallbackServerContext*,
                                                             v1::UploadBlobResponse*) override;
  grpc::ServerUnaryReactor* ValidateData(grpc::CallbackServerContext*, const v1::ValidateDataRequest*,
                                         v1::ValidateDataResponse*) override;

 private:
  ServiceContext* context_;
};

}  // namespace hone
