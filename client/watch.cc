#include "client/watch.h"

#include <chrono>
#include <cmath>
#include <utility>

#include "client/interrupt.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"

namespace hone {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr size_t kRecentSteps = 20;
constexpr size_t kMaxLosses = 4096;
constexpr int kPlainLineSeconds = 10;

bool WorthAnotherTry(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
      return true;
    default:
      return false;
  }
}

double Mean(const std::deque<double>& values) {
  double sum = 0;
  for (double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double Seconds(const google::protobuf::Timestamp& stamp) {
  return static_cast<double>(stamp.seconds()) + stamp.nanos() * 1e-9;
}

std::string PhaseText(v1::Phase phase) {
  switch (phase) {
    case v1::PHASE_LOADING:
      return "loading the model";
    case v1::PHASE_REFERENCE:
      return "reference log-probabilities";
    case v1::PHASE_TRAINING:
      return "training";
    case v1::PHASE_EVALUATING:
      return "evaluating";
    case v1::PHASE_FINALIZING:
      return "writing the results";
    case v1::PHASE_WARMING:
      return "warming up";
    default:
      return "working";
  }
}

std::string StateLine(const v1::StateChange& change) {
  std::string line = StateText(change.to(), false);
  if (!change.message().empty()) return StrCat(line, ": ", Printable(change.message()));
  if (change.to() == v1::VALIDATING) return StrCat(line, ": checks the job and its data, and plans memory and time");
  if (change.to() == v1::FINALIZING) return StrCat(line, ": writes the results");
  const bool plain = change.to() == v1::RUNNING || change.to() == v1::SUCCEEDED;
  if (!change.reason().empty() && !plain) line += StrCat(" (", Printable(change.reason()), ")");
  return line;
}

std::string EvalLine(const v1::EvalRecord& eval) {
  std::string line = StrCat("evaluation at step ", eval.step(), ": loss ", FormatNumber(eval.loss()));
  if (eval.perplexity() > 0) line += StrCat(", perplexity ", FormatNumber(eval.perplexity()));
  if (eval.has_rewards_margins()) line += StrCat(", reward margin ", FormatNumber(eval.rewards_margins()));
  if (eval.has_kl()) line += StrCat(", KL ", FormatNumber(eval.kl()));
  return StrCat(line, " (", eval.examples(), " examples)");
}

std::string PlanLine(const v1::Plan& plan) {
  std::string line = StrCat("plan: ", FormatBytes(plan.bytes().total()), " on ", Printable(plan.device()));
  if (plan.steps() > 0) line += StrCat(", ", plan.steps(), " steps");
  if (plan.seconds() > 0) line += StrCat(", about ", FormatDuration(plan.seconds()));
  return plan.fits() ? line : line + ": does not fit";
}

class Follower {
 public:
  Follower(Context& context, Client& client, std::string id, const WatchOptions& options)
      : context_(context),
        client_(client),
        id_(std::move(id)),
        options_(options),
        interrupt_(options.timeout_seconds) {}

  int Run() {
    const absl::StatusOr<v1::Job> job = client_.GetJob(id_);
    if (!job.ok()) return Fail(context_, job.status());
    id_ = job->id();
    view_.emplace(job->display_name().empty() ? job->id() : Printable(job->display_name()), options_.already_said);
    StatusLine line(context_.terminal);
    line_ = &line;
    return Follow();
  }

 private:
  int Follow() {
    auto last_contact = SteadyClock::now();
    int pause = 200;
    while (true) {
      const absl::Status status = client_.WatchJob(
          id_, last_sequence_,
          [&](const v1::JobEvent& event) {
            last_contact = SteadyClock::now();
            pause = 200;
            return Take(event);
          },
          interrupt_.cancellation());
      if (interrupt_.interrupted()) return Detached();
      if (interrupt_.timed_out()) return TimedOut();
      if (status.ok()) {
        const absl::StatusOr<v1::Job> job = client_.GetJob(id_);
        if (job.ok() && IsAtRest(job->state()) && job->state() != v1::HELD) return Finished(*job);
        if (job.ok()) last_contact = SteadyClock::now();
        if (job.ok() && job->state() == v1::HELD) SayHeld(*job);
      } else if (!WorthAnotherTry(status)) {
        return Fail(context_, status);
      }
      if (SteadyClock::now() - last_contact > std::chrono::seconds(options_.patience_seconds)) {
        line_->Clear();
        Fail(context_, absl::UnavailableError(ToAbsl(StrCat("lost the daemon: ", status.message()))));
        Err(StrCat("The job is kept; it goes on when the daemon does: hone watch ", id_, "\n"));
        return kExitUnreachable;
      }
      if (!status.ok() && !said_lost_) {
        line_->Say("connection lost; trying again");
        said_lost_ = true;
      }
      interrupt_.Sleep(pause);
      if (interrupt_.interrupted()) return Detached();
      if (interrupt_.timed_out()) return TimedOut();
      pause = std::min(pause * 2, 500);
    }
  }

  bool Take(const v1::JobEvent& event) {
    if (event.sequence() != 0 && event.sequence() <= last_sequence_) return true;  // seen before the connection broke
    if (event.sequence() != 0) last_sequence_ = event.sequence();
    if (said_lost_) {
      line_->Say("connected again");
      said_lost_ = false;
    }
    if (context_.json()) {
      Out(MessageToJson(event) + "\n");
      return true;
    }
    const std::string lasting = view_->Take(event);
    if (!lasting.empty() && !context_.quiet) line_->Say(lasting);
    ShowProgress(event);
    return true;
  }

  void ShowProgress(const v1::JobEvent& event) {
    if (!view_->has_progress() || context_.quiet) return;
    if (context_.terminal.err_is_terminal) {
      line_->Show(view_->ProgressLine(static_cast<size_t>(std::max(20, context_.terminal.width - 1))));
      return;
    }
    const bool last_step = event.has_step() && event.step().step() == event.step().steps();
    const auto now = SteadyClock::now();
    if (!last_step && now - last_plain_ < std::chrono::seconds(kPlainLineSeconds)) return;
    if (!event.has_step() && !event.has_progress()) return;
    last_plain_ = now;
    Err(view_->PlainLine() + "\n");
  }

  // What is held goes on, by itself or by somebody's hand: this waits for it. Why it is held the event has said.
  void SayHeld(const v1::Job& job) {
    if (std::exchange(held_said_, last_sequence_) == last_sequence_) return;
    if (context_.json() || context_.quiet) return;
    line_->Say(StrCat("it goes on when that is mended; this waits. Try again now: hone release ", job.id(),
                      "; end it: hone cancel ", job.id()));
  }

  int Detached() {
    line_->Clear();
    if (view_->has_progress() && !context_.quiet) Err(view_->PlainLine() + "\n");
    Err(StrCat("Detached; job ", id_, " goes on. Watch it again: hone watch ", id_, ". End it: hone cancel ", id_,
               "\n"));
    return kExitDetached;
  }

  int TimedOut() {
    line_->Clear();
    Err(StrCat("hone: --timeout passed; job ", id_, " goes on. Watch it again: hone watch ", id_, "\n"));
    return kExitTimeout;
  }

  int Finished(const v1::Job& job) {
    line_->Clear();
    const bool tell = !context_.quiet || job.state() != v1::SUCCEEDED;
    if (!context_.json() && tell) Err(JobSummary(job, context_.terminal.err_colours));
    if (job.state() == v1::SUCCEEDED) return kExitOk;
    if (job.state() != v1::FAILED) return kExitStopped;
    return options_.submitted_here && job.state_reason() == "PLAN_DOES_NOT_FIT" ? kExitDoesNotFit : kExitFailed;
  }

  Context& context_;
  Client& client_;
  std::string id_;
  const WatchOptions options_;
  Interrupt interrupt_;
  std::optional<WatchView> view_;
  StatusLine* line_ = nullptr;
  uint64_t last_sequence_ = 0;
  uint64_t held_said_ = 0;  // the number of the event after which it was said that the job is held
  bool said_lost_ = false;
  SteadyClock::time_point last_plain_{};
};

}  // namespace

std::string WatchView::Take(const v1::JobEvent& event) {
  switch (event.event_case()) {
    case v1::JobEvent::kStep:
      TakeStep(event.step());
      return "";
    case v1::JobEvent::kProgress:
      // Between steps the steps themselves say more.
      if (event.progress().phase() != v1::PHASE_TRAINING || !step_.has_value()) progress_ = event.progress();
      return "";
    case v1::JobEvent::kState:
      return StateLine(event.state());
    case v1::JobEvent::kEval:
      return EvalLine(event.eval());
    case v1::JobEvent::kCheckpoint:
      return StrCat("checkpoint at step ", event.checkpoint().step());
    case v1::JobEvent::kWarning:
      return warned_.insert(event.warning()).second ? StrCat("warning: ", Printable(event.warning())) : "";
    case v1::JobEvent::kPlan:
      return PlanLine(event.plan());
    default:
      return "";
  }
}

void WatchView::TakeStep(const v1::StepRecord& step) {
  // A resumed attempt repeats steps: what it says replaces what the lost one said.
  if (step_.has_value() && step.step() <= step_->step()) losses_.clear();
  step_ = step;
  progress_.reset();
  losses_.push_back(step.loss());
  if (losses_.size() > kMaxLosses) losses_.erase(losses_.begin(), losses_.begin() + kMaxLosses / 2);
  recent_seconds_.push_back(step.seconds());
  recent_tokens_.push_back(static_cast<double>(step.tokens()));
  if (recent_seconds_.size() > kRecentSteps) {
    recent_seconds_.pop_front();
    recent_tokens_.pop_front();
  }
}

std::optional<double> WatchView::EtaSeconds() const {
  if (!step_.has_value() || step_->steps() < step_->step()) return std::nullopt;
  const double each = Mean(recent_seconds_);
  if (!(each > 0)) return std::nullopt;
  return each * static_cast<double>(step_->steps() - step_->step());
}

std::string WatchView::Figures() const {
  std::string text = StrCat("loss ", FormatNumber(step_->loss()));
  if (step_->has_rewards_margins()) text += StrCat(" margin ", FormatNumber(step_->rewards_margins()));
  if (step_->has_kl()) text += StrCat(" kl ", FormatNumber(step_->kl()));
  return text;
}

std::string WatchView::ProgressLine(size_t width) const {
  if (progress_.has_value()) {
    std::string line = StrCat(label_, "  ", PhaseText(progress_->phase()));
    if (progress_->total() > 0) {
      const double share = static_cast<double>(progress_->done()) / static_cast<double>(progress_->total());
      line += StrCat("  ", Bar(share, 20), " ", progress_->done(), "/", progress_->total());
    }
    if (!progress_->detail().empty()) line += "  " + Printable(progress_->detail());
    return Clip(line, width);
  }
  if (!step_.has_value()) return label_;
  const double share =
      step_->steps() > 0 ? static_cast<double>(step_->step()) / static_cast<double>(step_->steps()) : 0;
  const double seconds = Mean(recent_seconds_);
  const std::string speed = seconds > 0 ? StrCat("  ", FormatCount(Mean(recent_tokens_) / seconds), " tok/s") : "";
  const std::optional<double> eta = EtaSeconds();
  const std::string head = StrCat(label_, "  ");
  const std::string tail = StrCat(" ", step_->step(), "/", step_->steps(), " ", static_cast<int>(share * 100), "%  ",
                                  Figures(), speed, eta ? StrCat("  ETA ", FormatDuration(*eta)) : "");
  // What room is left is shared by the bar and the sparkline.
  const size_t used = DisplayWidth(head) + DisplayWidth(tail) + 2;
  const size_t room = width > used ? width - used : 0;
  const size_t bar = std::min<size_t>(24, room * 6 / 10);
  const size_t spark = std::min<size_t>(24, room - bar);
  const std::string curve = spark >= 4 ? StrCat("  ", Sparkline(losses_, spark)) : "";
  return Clip(StrCat(head, bar >= 4 ? Bar(share, bar) : "", tail, curve), width);
}

std::string WatchView::PlainLine() const {
  if (progress_.has_value() || !step_.has_value()) {
    if (!progress_.has_value()) return label_;
    const std::string count = progress_->total() > 0 ? StrCat(" ", progress_->done(), "/", progress_->total()) : "";
    return StrCat(label_, ": ", PhaseText(progress_->phase()), count);
  }
  const double seconds = Mean(recent_seconds_);
  const std::string speed = seconds > 0 ? StrCat(", ", FormatCount(Mean(recent_tokens_) / seconds), " tok/s") : "";
  const std::optional<double> eta = EtaSeconds();
  return StrCat(label_, ": step ", step_->step(), "/", step_->steps(), ", ", Figures(), speed,
                eta ? StrCat(", ETA ", FormatDuration(*eta)) : "");
}

std::string StateText(v1::JobState state, bool colours) {
  Colour colour = Colour::kPlain;
  if (state == v1::SUCCEEDED) colour = Colour::kGreen;
  if (state == v1::FAILED) colour = Colour::kRed;
  if (state == v1::RUNNING || state == v1::STARTING || state == v1::FINALIZING) colour = Colour::kBlue;
  if (state == v1::CANCELLED || state == v1::HELD || state == v1::PAUSED) colour = Colour::kYellow;
  return Paint(colours, colour,
               v1::JobState_IsValid(state) ? v1::JobState_Name(state) : StrCat("STATE_", static_cast<int>(state)));
}

std::string JobSummary(const v1::Job& job, bool colours) {
  std::string out = StrCat(Printable(job.display_name().empty() ? job.id() : job.display_name()), ": ",
                           StateText(job.state(), colours));
  if (job.has_start_time() && job.has_end_time()) {
    out += StrCat(" after ", FormatDuration(Seconds(job.end_time()) - Seconds(job.start_time())));
  }
  out += "\n";
  if (!job.state_message().empty()) out += StrCat("  ", Printable(job.state_message()), "\n");
  if (job.has_last_step()) {
    out += StrCat("  step ", job.last_step().step(), "/", job.last_step().steps(), ", loss ",
                  FormatNumber(job.last_step().loss()), "\n");
  }
  if (job.has_last_eval()) out += StrCat("  ", EvalLine(job.last_eval()), "\n");
  if (job.state() == v1::SUCCEEDED) {
    out += StrCat("  try it: hone generate --job ", job.id(),
                  " --ask \"What is a tide?\" --compare\n  files:  hone export ", job.id(),
                  " --output DIR\n  report: hone report ", job.id(), "\n");
  } else if (job.state() == v1::FAILED) {
    out += StrCat("  why: hone logs ", job.id(), "\n  run it again: hone submit --from ", job.id(), "\n");
  } else if (job.state() == v1::CANCELLED) {
    out += StrCat("  run it again: hone submit --from ", job.id(), "\n");
  } else if (job.state() == v1::PAUSED) {
    out += StrCat("  go on: hone resume ", job.id(), "\n");
  } else if (job.state() == v1::HELD) {
    out += StrCat("  try again now: hone release ", job.id(), "; end it: hone cancel ", job.id(), "\n");
  }
  return out;
}

std::string NextStep(const v1::Job& job) {
  const std::string& id = job.id();
  switch (job.state()) {
    case v1::SUCCEEDED:
      return StrCat("Take its files: hone export ", id, " --output DIR");
    case v1::FAILED:
      return StrCat("See why: hone logs ", id, ". Run it again: hone submit --from ", id);
    case v1::CANCELLED:
      return StrCat("Run it again: hone submit --from ", id);
    case v1::PAUSING:
      return StrCat("Wait for it: hone wait ", id, " --for paused");
    case v1::CANCELLING:
      return StrCat("Wait for it: hone wait ", id);
    case v1::PAUSED:
      return StrCat("Go on: hone resume ", id);
    case v1::HELD:
      return StrCat("Let it go: hone release ", id);
    default:
      return StrCat("Watch it: hone watch ", id);
  }
}

int WatchJob(Context& context, Client& client, const std::string& id, const WatchOptions& options) {
  return Follower(context, client, id, options).Run();
}

}  // namespace hone
