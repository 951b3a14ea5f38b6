"""How good the variants of a store are: perplexity, divergence from a reference, multiple-choice tasks, answers.

    report = evaluate(Store.open(Path("store")), ["large", "small"], Exams(text=Path("wiki.test.raw"), n_windows=16))
    print(report.rows["small"].text.kl)                    # 0.0461 ± 0.0012

One model is loaded; the variants take turns through the live switch.
"""

from lamella.evaluating.evaluation import Evaluation, Exams, OnProgress, Row, evaluate

__all__ = ["Evaluation", "Exams", "OnProgress", "Row", "evaluate"]
