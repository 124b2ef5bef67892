#include "server/job_streams.h"

#include <chrono>

#include "proto/base/status.h"
#include "server/errors.h"
#include "server/store/states.h"

namespace hone {
namespace {

constexpr int kBatch = 64;
constexpr size_t kLogChunkBytes = 64 << 10;
constexpr size_t kArtifactChunkBytes = 256 << 10;
constexpr std::chrono::milliseconds kFollowTick(250);

}  // namespace

// ---- events

absl::Status WatchPump::Attach() {
  if (context_->watchers != nullptr) {
    // Whether the client still reads is looked at by the hub.
    HONE_RETURN_IF_ERROR(context_->watchers->Enter(
        client_, [](Readers::Clock::time_point) {}, &number_));
  }
  HONE_ASSIGN_OR_RETURN(id_, context_->store->ResolveJobName(name_));
  subscription_ = context_->hub->Subscribe(
      id_,
      [weak = weak_] {
        if (const auto pump = weak.lock()) pump->Kick();
      },
      [weak = weak_](std::chrono::steady_clock::time_point now) {
        if (const auto pump = weak.lock()) pump->CheckStall(now);
      });
  if (subscription_ == nullptr) {
    return WithReason(ResourceExhausted("too many open Watch streams; close some"), "TOO_MANY_WATCHES");
  }
  context_->metrics->SetWatchStreams(context_->hub->subscriptions());
  HONE_ASSIGN_OR_RETURN(v1::Job job, context_->store->GetJob(id_));
  if (sent_ > job.last_sequence()) {
    return WithField(absl::OutOfRangeError(
                         ToAbsl(StrCat("after_sequence: ", sent_, ", but the newest event is ", job.last_sequence()))),
                     "after_sequence");
  }
  // Where it stands, for a client that comes in the middle.
  if (IsActive(job.state()) && job.has_last_step() && job.attempts_size() > 0) {
    Transient newest;
    newest.after_sequence = job.last_sequence();
    newest.event.set_attempt(job.attempts(job.attempts_size() - 1).number());
    *newest.event.mutable_step() = job.last_step();
    subscription_->Offer(std::make_shared<const Transient>(std::move(newest)));
  }
  return absl::OkStatus();
}

bool WatchPump::TakeRecord(v1::JobEvent* event) {
  while (subscription_->Take(sent_, event)) {
    if (!event->has_step()) return true;
    const bool older =
        event->attempt() < step_attempt_ || (event->attempt() == step_attempt_ && event->step().step() <= step_);
    if (older) continue;  // sent already, when the stream began
    step_attempt_ = event->attempt();
    step_ = event->step().step();
    return true;
  }
  return false;
}

StreamPump<v1::JobEvent>::Next WatchPump::Produce(v1::JobEvent* event, absl::Status* status) {
  if (subscription_ == nullptr) {
    *status = Attach();
    if (!status->ok()) return Next::kEnd;
  }
  while (true) {
    if (TakeRecord(event)) return Next::kMessage;
    if (!batch_.empty()) {
      if (batch_.front().sequence() > sent_ + 1) {
        SkipRemoved(event);
        return Next::kMessage;
      }
      *event = std::move(batch_.front());
      batch_.pop_front();
      HONE_CHECK(event->sequence() == sent_ + 1, "a gap after event ", sent_, " of job ", id_);
      sent_ = event->sequence();
      return Next::kMessage;
    }
    // A record whose predecessor has not been sent yet asks for a look, too.
    if (!subscription_->TakeAnnounced()) return Next::kWait;
    // The head first: what it counts is there to be read afterwards.
    const absl::StatusOr<JobHead> head = context_->store->GetJobHead(id_);
    auto events = context_->store->Events(id_, sent_, kBatch);
    if (!head.ok() || !events.ok()) {
      *status = head.ok() ? events.status() : head.status();
      return Next::kEnd;
    }
    if (!events->empty()) {
      batch_.assign(std::make_move_iterator(events->begin()), std::make_move_iterator(events->end()));
      subscription_->Offer(nullptr);  // there may be more than a batch
      continue;
    }
    if (IsAtRest(head->state)) return Next::kEnd;
    if (context_->stopping) {
      *status =
          WithReason(absl::UnavailableError(ToAbsl(StrCat("the daemon is stopping; watch again after event ", sent_))),
                     "DRAINING");
      return Next::kEnd;
    }
    return Next::kWait;
  }
}

// Retention has removed the events before the next one: said once, without a number of its own.
void WatchPump::SkipRemoved(v1::JobEvent* event) {
  const uint64_t next = batch_.front().sequence();
  event->set_warning(StrCat("events ", sent_ + 1, " to ", next - 1, " were removed by retention"));
  sent_ = next - 1;
}

absl::Status WatchPump::TooSlow() {
  return WithReason(absl::AbortedError(ToAbsl(StrCat("the client reads too slowly; watch again after event ", sent_))),
                    "SLOW_READER");
}

void WatchPump::End() {
  if (number_ != 0) context_->watchers->Leave(number_);
  if (subscription_ == nullptr) return;
  context_->hub->Unsubscribe(id_, subscription_);
  context_->metrics->SetWatchStreams(context_->hub->subscriptions());
}

// ---- logs

absl::StatusOr<std::string> LogPump::ReadMore() {
  while (true) {
    if (!file_.is_open()) {
      absl::StatusOr<OpenFile> file = OpenRegular(context_->layout->WorkerLog(id_, attempt_));
      if (absl::IsNotFound(file.status())) return std::string();
      if (!file.ok()) return file.status();
      file_ = *std::move(file);
      offset_ = 0;
      if (attempt_ > 1) return StrCat("--- attempt ", attempt_, " ---\n");
    }
    HONE_ASSIGN_OR_RETURN(std::string text, file_.ReadAt(offset_, kLogChunkBytes));
    // A full chunk is cut after a line, so that no character is torn.
    const size_t line = text.size() == kLogChunkBytes ? text.rfind('\n') : std::string::npos;
    if (line != std::string::npos) text.resize(line + 1);
    offset_ += text.size();
    if (!text.empty()) return text;
    // The next attempt's log exists only after this one's worker has ended.
    absl::StatusOr<OpenFile> next = OpenRegular(context_->layout->WorkerLog(id_, attempt_ + 1));
    if (!next.ok()) return std::string();
    HONE_ASSIGN_OR_RETURN(text, file_.ReadAt(offset_, kLogChunkBytes));
    if (!text.empty()) continue;
    ++attempt_;
    file_ = OpenFile();
  }
}

StreamPump<v1::LogChunk>::Next LogPump::Produce(v1::LogChunk* chunk, absl::Status* status) {
  if (id_.empty()) {
    *status = Enter();
    if (!status->ok()) return Next::kEnd;
    auto id = context_->store->ResolveJobName(name_);
    *status = id.status();
    if (!id.ok()) return Next::kEnd;
    id_ = *std::move(id);
  }
  const absl::StatusOr<JobHead> head = context_->store->GetJobHead(id_);
  absl::StatusOr<std::string> text = ReadMore();
  if (!head.ok() || !text.ok()) {
    *status = head.ok() ? text.status() : head.status();
    return Next::kEnd;
  }
  if (!text->empty()) {
    chunk->set_text(ToValidUtf8(*text, SIZE_MAX));
    return Next::kMessage;
  }
  if (!follow_ || IsAtRest(head->state)) return Next::kEnd;
  if (context_->stopping) {
    *status = DrainingError();
    return Next::kEnd;
  }
  alarm_.Set(std::chrono::system_clock::now() + kFollowTick, [weak = weak_](bool ok) {
    if (const auto pump = weak.lock(); ok && pump) pump->Kick();
  });
  return Next::kWait;
}

// ---- artifacts

absl::Status ArtifactPump::Open() {
  HONE_RETURN_IF_ERROR(Enter());
  HONE_ASSIGN_OR_RETURN(const std::string id, context_->store->ResolveJobName(request_.name()));
  HONE_ASSIGN_OR_RETURN(file_, OpenBeneath(context_->layout->Output(id), request_.path()));
  if (offset_ > file_.size()) {
    return WithField(absl::OutOfRangeError(ToAbsl(StrCat("offset: the artifact has ", file_.size(), " bytes"))),
                     "offset");
  }
  return absl::OkStatus();
}

StreamPump<v1::ArtifactChunk>::Next ArtifactPump::Produce(v1::ArtifactChunk* chunk, absl::Status* status) {
  if (!file_.is_open()) {
    *status = Open();
    if (!status->ok()) return Next::kEnd;
  }
  if (offset_ >= file_.size() && sent_any_) return Next::kEnd;
  const size_t want = static_cast<size_t>(std::min<uint64_t>(kArtifactChunkBytes, file_.size() - offset_));
  absl::StatusOr<std::string> bytes = file_.ReadAt(offset_, want);
  *status = bytes.status();
  if (status->ok() && bytes->empty() && want > 0)
    *status = absl::AbortedError("the artifact became shorter while it was read");
  if (!status->ok()) return Next::kEnd;
  offset_ += bytes->size();
  sent_any_ = true;
  chunk->set_data(*std::move(bytes));
  chunk->set_total_bytes(file_.size());
  return Next::kMessage;
}

}  // namespace hone
