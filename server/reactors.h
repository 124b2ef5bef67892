// How gRPC's callback API is used here: every reaction posts to an executor and returns at once. RunUnary answers a
// unary call; StreamPump feeds a server stream one message at a time from a Produce() that never blocks for long, so
// that a client that does not read holds one message and no thread. Not here: what is answered.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/status.h"
#include "server/errors.h"
#include "server/executor.h"
#include "spdlog/spdlog.h"

namespace hone {

inline absl::Status Overloaded() {
  return WithReason(ResourceExhausted("the daemon has too much to do; try again in a moment"), "OVERLOADED");
}

// What a broken invariant or a library's exception becomes at the boundary: logged in full, told in short.
template <typename Work>
absl::Status Guarded(const Work& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    spdlog::error("a request broke an invariant: {}", error.what());
    return Internal("the daemon met a mistake of its own; its log says more");
  }
}

// Runs `work` on the executor and ends the call with its status.
template <typename Work>
grpc::ServerUnaryReactor* RunUnary(Executor* executor, grpc::CallbackServerContext* context, Work work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool posted = executor->Post([reactor, context, work = std::move(work)] {
    if (context->IsCancelled()) return reactor->Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client left"));
    reactor->Finish(ToGrpcStatus(Guarded(work)));
  });
  if (!posted) reactor->Finish(ToGrpcStatus(Overloaded()));
  return reactor;
}

// A server stream. Made by Create<Derived>(...), deleted when gRPC and every callback are done with it.
template <typename Message>
class StreamPump : public grpc::ServerWriteReactor<Message>, public std::enable_shared_from_this<StreamPump<Message>> {
 public:
  enum class Next { kMessage, kWait, kEnd };

  // What the service's method returns.
  template <typename Derived, typename... Args>
  static grpc::ServerWriteReactor<Message>* Create(Executor* executor, grpc::CallbackServerContext* call,
                                                   Args&&... args) {
    auto pump = std::make_shared<Derived>(std::forward<Args>(args)...);
    StreamPump* base = pump.get();
    base->executor_ = executor;
    base->call_ = call;
    base->self_ = pump;
    base->Begin(pump);
    base->Kick();
    return pump.get();
  }

  // There may be something to send. Thread-safe, never blocks.
  void Kick() {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
      again_ = true;
      if (busy_) return;
      busy_ = true;
    }
    PostRun();
  }

  // Ends the call of a client that has not taken a message for much too long. Thread-safe; called now and then.
  void CheckStall(std::chrono::steady_clock::time_point now) {
    std::lock_guard lock(mutex_);
    if (call_ == nullptr || !writing_ || slow_limit_.count() == 0 || now - write_began_ < 2 * slow_limit_) return;
    call_->TryCancel();  // a status would wait behind the message that nobody takes
    call_ = nullptr;
  }

  bool cancelled() const {
    std::lock_guard lock(mutex_);
    return cancelled_;
  }

 protected:
  // Called once, before anything else, with the pump itself.
  virtual void Begin(const std::shared_ptr<StreamPump>&) {}
  // On the executor, never twice at a time. kEnd: *status is how the stream ends.
  virtual Next Produce(Message* message, absl::Status* status) = 0;
  // The stream is over, for whatever reason; called once.
  virtual void End() {}
  // How the stream ends when a message took longer than the limit to be taken.
  virtual absl::Status TooSlow() { return absl::OkStatus(); }
  // Set in Begin. Zero: no limit.
  void LimitWrites(std::chrono::milliseconds limit) { slow_limit_ = limit; }

 private:
  void PostRun() {
    if (!executor_->Post([self = this->shared_from_this()] { self->Run(); })) Finish(Overloaded());
  }

  void Run() {
    while (true) {
      {
        std::lock_guard lock(mutex_);
        again_ = false;
      }
      if (cancelled()) return Finish(absl::CancelledError("the client left"));
      if (slow_) return Finish(TooSlow());
      Next next = Next::kEnd;
      absl::Status status = Guarded([&]() -> absl::Status {
        absl::Status end;
        message_.Clear();
        next = Produce(&message_, &end);
        return end;
      });
      if (!status.ok()) next = Next::kEnd;
      if (next == Next::kMessage) {
        {
          std::lock_guard lock(mutex_);
          writing_ = true;
          write_began_ = std::chrono::steady_clock::now();
        }
        return this->StartWrite(&message_);
      }
      if (next == Next::kEnd) return Finish(status);
      std::lock_guard lock(mutex_);
      if (again_) continue;
      busy_ = false;
      return;
    }
  }

  void Finish(const absl::Status& status) {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
      finished_ = true;
    }
    grpc::ServerWriteReactor<Message>::Finish(ToGrpcStatus(status));
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(absl::CancelledError("the client left"));
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      if (slow_limit_.count() > 0 && std::chrono::steady_clock::now() - write_began_ > slow_limit_) slow_ = true;
    }
    PostRun();
  }
  void OnCancel() override {
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
    }
    Kick();
  }
  void OnDone() override {
    {
      std::lock_guard lock(mutex_);
      call_ = nullptr;
    }
    End();
    self_.reset();
  }

  Executor* executor_ = nullptr;
  std::shared_ptr<StreamPump> self_;
  mutable std::mutex mutex_;
  bool busy_ = false;   // Run is posted or running, or a write is under way
  bool again_ = false;  // Kick came meanwhile
  bool finished_ = false;
  bool cancelled_ = false;
  bool writing_ = false;
  bool slow_ = false;
  std::chrono::milliseconds slow_limit_{0};
  std::chrono::steady_clock::time_point write_began_;
  grpc::CallbackServerContext* call_ = nullptr;  // null once the call is over
  Message message_;
};

}  // namespace hone
