// hone.v1.Daemon: how the daemon is, what it may compute on, and how to end it.
#pragma once

#include "server/services.h"

namespace hone {

class DaemonService final : public v1::Daemon::CallbackService {
 public:
  explicit DaemonService(ServiceContext* context) : context_(context) {}

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext*, const v1::GetStatusRequest*,
                                      v1::DaemonStatus*) override;
  grpc::ServerUnaryReactor* ListDevices(grpc::CallbackServerContext*, const v1::ListDevicesRequest*,
                                        v1::ListDevicesResponse*) override;
  grpc::ServerUnaryReactor* Shutdown(grpc::CallbackServerContext*, const v1::ShutdownRequest*,
                                     v1::ShutdownResponse*) override;

 private:
  ServiceContext* context_;
};

}  // namespace hone
