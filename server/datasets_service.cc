#include "server/datasets_service.h"

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "proto/base/status.h"
#include "server/errors.h"
#include "server/reactors.h"

namespace hone {
namespace {

// Of the limit on slow readers: an upload that brings nothing for longer is ended, with what it has on disk.
constexpr int kPatience = 10;

// One upload: reads a message, writes it on the quick executor, reads the next.
class UploadReactor final : public grpc::ServerReadReactor<v1::UploadBlobRequest> {
 public:
  UploadReactor(ServiceContext* context, grpc::CallbackServerContext* call, v1::UploadBlobResponse* response)
      : context_(context), call_(call), response_(response), idle_(std::make_shared<Idle>()) {
    idle_->call = call;
    StartRead(&request_);
  }

 private:
  void OnReadDone(bool ok) override {
    const bool posted = context_->quick->Post([this, ok] {
      const absl::Status status = Guarded([this, ok] { return ok ? Take() : Complete(); });
      if (ok && status.ok()) return StartRead(&request_);
      writer_.reset();
      Finish(ToGrpcStatus(status));
    });
    if (!posted) Finish(ToGrpcStatus(Overloaded()));
  }
  void OnDone() override {
    {
      std::lock_guard lock(idle_->mutex);
      idle_->call = nullptr;
    }
    if (number_ != 0) context_->uploads->Leave(number_);
    delete this;
  }

  absl::Status Enter() {
    if (context_->uploads == nullptr) return absl::OkStatus();
    const auto limit = kPatience * context_->slow_reader;
    return context_->uploads->Enter(
        ClientOf(*context_, *call_),
        [idle = idle_, limit](Readers::Clock::time_point now) {
          std::lock_guard lock(idle->mutex);
          if (idle->call == nullptr || now - idle->since < limit) return;
          idle->call->TryCancel();
          idle->call = nullptr;
        },
        &number_);
  }

  absl::Status Take() {
    if (context_->stopping) return DrainingError();
    {
      std::lock_guard lock(idle_->mutex);
      idle_->since = Readers::Clock::now();
    }
    if (writer_ == nullptr) {
      HONE_RETURN_IF_ERROR(Enter());
      digest_ = request_.digest();
      HONE_ASSIGN_OR_RETURN(writer_, context_->blobs->Begin(digest_, request_.total_bytes()));
    } else if (!request_.digest().empty() && request_.digest() != digest_) {
      return WithField(InvalidArgument("digest: changed in the middle of an upload"), "digest");
    }
    return writer_->Append(request_.data());
  }

  absl::Status Complete() {
    if (call_->IsCancelled()) return absl::CancelledError("the client left");
    if (writer_ == nullptr) return WithField(InvalidArgument("digest: the upload has no first message"), "digest");
    HONE_RETURN_IF_ERROR(writer_->Finish());
    response_->set_digest(digest_);
    response_->set_bytes(writer_->received());
    return absl::OkStatus();
  }

  // What the check on idle uploads shares with this one, which may be gone.
  struct Idle {
    std::mutex mutex;
    grpc::CallbackServerContext* call = nullptr;  // null once the call is over
    Readers::Clock::time_point since = Readers::Clock::now();
  };

  ServiceContext* context_;
  grpc::CallbackServerContext* call_;
  v1::UploadBlobResponse* response_;
  const std::shared_ptr<Idle> idle_;
  uint64_t number_ = 0;  // among the uploads
  v1::UploadBlobRequest request_;
  std::string digest_;
  std::unique_ptr<BlobWriter> writer_;
};

}  // namespace

grpc::ServerUnaryReactor* DatasetsService::GetBlob(grpc::CallbackServerContext* call, const v1::GetBlobRequest* request,
                                                   v1::GetBlobResponse* response) {
  return RunUnary(context_->quick, call, [this, request, response]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const std::optional<uint64_t> bytes, context_->blobs->Find(request->digest()));
    response->set_present(bytes.has_value());
    response->set_bytes(bytes.value_or(0));
    return absl::OkStatus();
  });
}

grpc::ServerReadReactor<v1::UploadBlobRequest>* DatasetsService::UploadBlob(grpc::CallbackServerContext* call,
                                                                            v1::UploadBlobResponse* response) {
  return new UploadReactor(context_, call, response);  // deletes itself in OnDone
}

grpc::ServerUnaryReactor* DatasetsService::ValidateData(grpc::CallbackServerContext* call,
                                                        const v1::ValidateDataRequest* request,
                                                        v1::ValidateDataResponse* response) {
  return RunUnary(context_->slow, call, [this, call, request, response]() -> absl::Status {
    if (context_->draining) return DrainingError();
    HONE_ASSIGN_OR_RETURN(const v1::JobSpec resolved,
                          context_->admission->Resolve(request->spec(), CallerOf(*context_, *call).uid));
    HONE_ASSIGN_OR_RETURN(*response->mutable_report_json(), context_->admission->Validate(resolved, [this, call] {
      return context_->stopping.load() || call->IsCancelled();
    }));
    return absl::OkStatus();
  });
}

}  // namespace hone
