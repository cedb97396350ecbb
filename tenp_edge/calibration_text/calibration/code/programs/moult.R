# Wing lengths of reed warblers before and after moult: is the change real, and
# does it depend on age? Data typed in from the 2021 ringing sheets.

birds <- data.frame(
  ring   = c("K3301", "K3304", "K3309", "K3312", "K3318", "K3320", "K3325", "K3331", "K3340", "K3342"),
  age    = factor(c("first", "adult", "adult", "first", "first", "adult", "adult", "first", "adult", "first"),
                  levels = c("first", "adult")),
  before = c(65.0, 67.5, 66.0, 64.5, 66.0, 68.0, 67.0, 65.5, 66.5, 64.0),
  after  = c(66.5, 68.0, 67.0, 66.0, 67.0, 68.5, 67.0, 67.0, 67.5, 66.0)
)
birds$gain <- with(birds, after - before)

stopifnot(!anyDuplicated(birds$ring), all(birds$gain >= 0))

cat("Mean gain (mm) by age:\n")
print(aggregate(gain ~ age, data = birds, FUN = mean))   # first 1.5, adult 0.6

# Paired test for the overall change. Ten birds are few, so also shuffle signs:
# under the null hypothesis a gain is as likely as a loss of the same size.
print(t.test(birds$after, birds$before, paired = TRUE))

sign_flip <- function(d, reps = 9999L) {
  observed <- mean(d)
  flipped <- replicate(reps, mean(d * sample(c(-1, 1), length(d), replace = TRUE)))
  (1 + sum(abs(flipped) >= abs(observed))) / (reps + 1)
}
set.seed(20211003)
cat(sprintf("Sign-flip p-value: %.4f\n", sign_flip(birds$gain)))

# Age effect, with a rank test because the gains come in half-millimetre steps.
print(suppressWarnings(wilcox.test(gain ~ age, data = birds)))

if (interactive()) {
  plot(after ~ before, data = birds, pch = c(1, 19)[birds$age], asp = 1,
       xlab = "before moult (mm)", ylab = "after moult (mm)")
  abline(0, 1, lty = 2)
  legend("topleft", legend = levels(birds$age), pch = c(1, 19), bty = "n")
}
