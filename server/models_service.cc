#include "server/models_service.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <system_error>

#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"
#include "server/errors.h"
#include "server/generate_stream.h"
#include "server/reactors.h"

namespace hone {
namespace {

constexpr size_t kMaxIdBytes = 63;
constexpr size_t kMaxInspectBytes = 1 << 20;  // a response stays far below a client's 4 MiB

bool IsIdCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

absl::StatusOr<std::string> ModelIdOf(std::string_view name) {
  if (name.substr(0, 7) == "models/") name.remove_prefix(7);
  if (!IsModelId(name)) {
    return WithField(InvalidArgument("name: a model is named \"models/<id>\" or by its id, [a-z0-9][a-z0-9._-]{0,62}"),
                     "name");
  }
  return std::string(name);
}

// What the registry shows of the worker's report.
void FillFromReport(const std::string& report, v1::Model* model) {
  if (report.size() <= kMaxInspectBytes) model->set_inspect_json(report);
  const absl::StatusOr<nlohmann::json> json = ParseJson(report);
  if (!json.ok() || !json->is_object()) return;
  const auto text = [&](const char* key) {
    const auto found = json->find(key);
    return found != json->end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  model->set_family(text("family"));
  model->set_digest(text("digest").empty() ? text("sha256") : text("digest"));
  if (const auto bytes = json->find("bytes"); bytes != json->end() && bytes->is_number_unsigned()) {
    model->set_bytes(bytes->get<uint64_t>());
  }
}

}  // namespace

bool IsModelId(std::string_view id) {
  if (id.empty() || id.size() > kMaxIdBytes) return false;
  if (!((id[0] >= 'a' && id[0] <= 'z') || (id[0] >= '0' && id[0] <= '9'))) return false;
  return std::all_of(id.begin(), id.end(), IsIdCharacter);
}

std::string ModelIdFromPath(std::string_view path) {
  while (!path.empty() && path.back() == '/') path.remove_suffix(1);
  std::string id;
  for (const char c : path.substr(path.rfind('/') + 1)) {
    const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    id.push_back(IsIdCharacter(lower) ? lower : '-');
  }
  if (id.size() > 5 && id.substr(id.size() - 5) == ".gguf") id.resize(id.size() - 5);
  id.erase(0, std::min(id.find_first_not_of("._-"), id.size()));
  id.resize(std::min(id.size(), kMaxIdBytes));
  return id;
}

grpc::ServerUnaryReactor* ModelsService::ImportModel(grpc::CallbackServerContext* call,
                                                     const v1::ImportModelRequest* request, v1::Model* model) {
  return RunUnary(context_->slow, call, [this, call, request, model] {
    const int64_t uid = CallerOf(*context_, *call).uid;
    if (!UserMayRead(uid, request->path()) && access(request->path().c_str(), F_OK) == 0) {
      return WithReason(
          WithField(absl::PermissionDeniedError(ToAbsl(StrCat("path: user ", uid, " may not read it"))), "path"),
          "NOT_READABLE");
    }
    return Import(
        *request, [this, call] { return context_->stopping.load() || call->IsCancelled(); }, model);
  });
}

// Written beside its place and then renamed, so that what stands there is whole; of what it was made is in source.txt.
absl::StatusOr<std::string> ModelsService::QuantisedCopy(const v1::ImportModelRequest& request, const std::string& id,
                                                         const Admission::Cancelled& cancelled) {
  if (request.quantization() != "nf4") {
    return WithField(InvalidArgument("quantization: \"", ToValidUtf8(request.quantization(), 100),
                                     "\" is not known; nf4, or leave it out"),
                     "quantization");
  }
  const std::string made_of = StrCat(request.quantization(), " ", request.path());
  const std::string folder = StrCat(context_->layout->Models(), "/", id);
  const absl::StatusOr<std::string> there = ReadFile(folder + "/source.txt", 1 << 16);
  if (there.ok() && *there == made_of) return folder;
  std::error_code error;
  if (std::filesystem::exists(folder, error)) {
    return WithReason(WithField(absl::AlreadyExistsError(ToAbsl(StrCat("id: ", folder, " holds another model",
                                                                       there.ok() ? StrCat(", ", *there) : "",
                                                                       "; choose another id, or remove that folder"))),
                                "id"),
                      "MODEL_EXISTS");
  }
  const std::string part = StrCat(context_->layout->Models(), "/.", id, ".part");  // no id begins with a dot
  std::filesystem::remove_all(part, error);                                        // of an import that was cut off
  absl::Status written =
      context_->admission->Quantise(request.path(), request.quantization(), part, cancelled).status();
  if (written.ok()) written = WriteFileDurably(part + "/source.txt", made_of);
  if (written.ok()) {
    std::filesystem::rename(part, folder, error);
    if (error) written = absl::UnavailableError(ToAbsl(StrCat("cannot rename ", part, ": ", error.message())));
  }
  if (written.ok()) return folder;
  std::filesystem::remove_all(part, error);
  return written;
}

// Importing the same path under the same id again gives the same entry, so a repeated request (with or without a
// request_id) makes no second one.
absl::Status ModelsService::Import(const v1::ImportModelRequest& request, const Admission::Cancelled& cancelled,
                                   v1::Model* model) {
  if (context_->draining) return DrainingError();
  HONE_RETURN_IF_ERROR(CheckReadablePath(request.path(), "path"));
  std::string id = request.id();
  if (id.empty()) {
    id = ModelIdFromPath(request.path());
    if (!id.empty() && !request.quantization().empty()) {
      const std::string suffix = "-" + ModelIdFromPath(request.quantization());
      id = id.substr(0, kMaxIdBytes - std::min(suffix.size(), kMaxIdBytes)) + suffix;
    }
  }
  if (!IsModelId(id)) {
    return WithField(InvalidArgument("id: \"", ToValidUtf8(id, 100), "\" does not match [a-z0-9][a-z0-9._-]{0,62}"),
                     "id");
  }
  std::string path = request.path();
  if (!request.quantization().empty()) {
    const std::lock_guard lock(quantising_);  // one at a time: it takes the machine's memory
    HONE_ASSIGN_OR_RETURN(path, QuantisedCopy(request, id, cancelled));
  }
  HONE_ASSIGN_OR_RETURN(const std::string report, context_->admission->Inspect(path, cancelled));
  model->set_id(id);
  model->set_name(StrCat("models/", id));
  model->set_path(path);
  FillFromReport(report, model);
  const int64_t now = NowMicros();
  model->mutable_create_time()->set_seconds(now / 1'000'000);
  model->mutable_create_time()->set_nanos(static_cast<int32_t>(now % 1'000'000) * 1000);
  HONE_ASSIGN_OR_RETURN(*model, context_->store->PutModel(*model));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* ModelsService::ListModels(grpc::CallbackServerContext* call,
                                                    const v1::ListModelsRequest* request,
                                                    v1::ListModelsResponse* response) {
  return RunUnary(context_->quick, call, [this, request, response]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(ModelPage page, context_->store->ListModels(request->page_size(), request->page_token()));
    for (v1::Model& model : page.models) {
      model.clear_inspect_json();  // GetModel has it; a page of them would be too long for a message
      *response->add_models() = std::move(model);
    }
    response->set_next_page_token(page.next_page_token);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ModelsService::GetModel(grpc::CallbackServerContext* call, const v1::GetModelRequest* request,
                                                  v1::Model* model) {
  return RunUnary(context_->quick, call, [this, request, model]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const std::string id, ModelIdOf(request->name()));
    HONE_ASSIGN_OR_RETURN(*model, context_->store->GetModel(id));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ModelsService::DeleteModel(grpc::CallbackServerContext* call,
                                                     const v1::DeleteModelRequest* request, v1::DeleteModelResponse*) {
  return RunUnary(context_->quick, call, [this, request]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const std::string id, ModelIdOf(request->name()));
    return context_->store->DeleteModel(id);
  });
}

grpc::ServerWriteReactor<v1::GenerateModelResponse>* ModelsService::Generate(grpc::CallbackServerContext* call,
                                                                             const v1::GenerateModelRequest* request) {
  return StreamPump<v1::GenerateModelResponse>::Create<GeneratePump>(context_->streams, call, context_, *request,
                                                                     CallerOf(*context_, *call).uid);
}

}  // namespace hone
