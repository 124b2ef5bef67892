// Causal attention over segments, one query at a time. `round` is what an implementation does to the numbers between
// its products (scores, probabilities and their gradients): NoRounding, or Bf16Rounding for the yardstick of a bf16
// back end.
#pragma once

#include <algorithm>

#include "kernels/reference/matrix.h"

namespace hone::reference {

// Rows of k and v that query i of the segment sees, in the order of their positions.
inline std::vector<int64_t> VisibleRows(const Segment& s, int64_t i, int64_t window) {
  std::vector<int64_t> rows;
  for (int64_t j = 0; j < s.prefix_len; ++j) rows.push_back(s.prefix0 + j);
  for (int64_t j = 0; j <= s.kv_len - s.q_len + i; ++j) rows.push_back(s.kv0 + j);
  const auto count = static_cast<int64_t>(rows.size());
  if (window > 0 && count > window) rows.erase(rows.begin(), rows.begin() + (count - window));
  return rows;
}

template <typename T>
T Softcapped(const T& s, double softcap) {
  return softcap == 0 ? s : softcap * std::tanh(s / softcap);
}

// Scores of one query and head before and after the softcap.
template <typename T, typename Round>
std::vector<T> Scores(const Matrix<T>& q, const Matrix<T>& k, int64_t q_row, int64_t head,
                      const std::vector<int64_t>& rows, const AttentionShape& shape, Round round) {
  const int64_t d = shape.head_dim, kv_head = head / (shape.heads / shape.kv_heads);
  std::vector<T> scores;
  for (int64_t row : rows) {
    T dot{};
    for (int64_t c = 0; c < d; ++c) dot += q(q_row, head * d + c) * k(row, kv_head * d + c);
    scores.push_back(Softcapped(round(dot * static_cast<double>(shape.scale)), shape.softcap));
  }
  return scores;
}

template <typename T, typename Round = NoRounding>
void Attention(const Matrix<T>& q, const Matrix<T>& k, const Matrix<T>& v, const std::vector<Segment>& segments,
               const AttentionShape& shape, Matrix<T>& out, Matrix<T>& lse, Round round = {}) {
  const int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads;
  for (const Segment& s : segments) {
    for (int64_t i = 0; i < s.q_len; ++i) {
      const std::vector<int64_t> rows = VisibleRows(s, i, shape.window);
      for (int64_t head = 0; head < shape.heads; ++head) {
        const std::vector<T> scores = Scores(q, k, s.q0 + i, head, rows, shape, round);
        double top = Real(scores[0]);
        for (const T& score : scores) top = std::max(top, Real(score));
        T sum{};
        for (const T& score : scores) sum += std::exp(score - top);
        lse(s.q0 + i, head) = top + std::log(sum);
        for (int64_t c = 0; c < d; ++c) {
          T value{};
          for (size_t j = 0; j < rows.size(); ++j) {
            value += round(std::exp(scores[j] - lse(s.q0 + i, head))) * v(rows[j], head / group * d + c);
          }
          out(s.q0 + i, head * d + c) = value;
        }
      }
    }
  }
}

// dq, dk, dv must be zero before. FlashAttention-2's backward (arXiv 2307.08691): ds = p (dp - delta).
template <typename T, typename Round = NoRounding>
void AttentionBackward(const Matrix<T>& d_out, const Matrix<T>& q, const Matrix<T>& k, const Matrix<T>& v,
                       const Matrix<T>& out, const Matrix<T>& lse, const std::vector<Segment>& segments,
                       const AttentionShape& shape, Matrix<T>& dq, Matrix<T>& dk, Matrix<T>& dv, Round round = {}) {
  const int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads;
  for (const Segment& s : segments) {
    for (int64_t i = 0; i < s.q_len; ++i) {
      const int64_t t = s.q0 + i;
      const std::vector<int64_t> rows = VisibleRows(s, i, shape.window);
      for (int64_t head = 0; head < shape.heads; ++head) {
        const int64_t kv_col = head / group * d, col = head * d;
        const std::vector<T> scores = Scores(q, k, t, head, rows, shape, round);
        T delta{};
        for (int64_t c = 0; c < d; ++c) delta += d_out(t, col + c) * out(t, col + c);
        for (size_t j = 0; j < rows.size(); ++j) {
          const T p = round(std::exp(scores[j] - lse(t, head)));
          T dp{};
          for (int64_t c = 0; c < d; ++c) dp += d_out(t, col + c) * v(rows[j], kv_col + c);
          T ds = p * (round(dp) - delta);
          if (shape.softcap != 0) ds *= 1.0 - std::pow(scores[j] / static_cast<double>(shape.softcap), 2);
          ds = round(ds) * static_cast<double>(shape.scale);
          for (int64_t c = 0; c < d; ++c) {
            dq(t, col + c) += ds * k(rows[j], kv_col + c);
            dk(rows[j], kv_col + c) += ds * q(t, col + c);
            dv(rows[j], kv_col + c) += p * d_out(t, col + c);
          }
        }
      }
    }
  }
}

}  // namespace hone::reference
