"""Text from data, E2E and its like: n-gram overlap with all references of a meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lrft.data.sources import Rows
from lrft.data.tokenize import Renderer
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._answers import greedy_answers, thinking
from lrft.evaluation.tasks._task import OfRows, TaskResult, each, share
from lrft.registry.axes import TASKS
from lrft.registry.config import Field
from lrft.registry.errors import MissingExtra
from lrft.registry.json import Json


@TASKS.register
class E2E(OfRows):
    """BLEU and ROUGE-L of one greedy answer a prompt, against the references of all rows with that prompt.

        bleu    = 100 BP exp(mean over n = 1..4 of log p_n), p_n the clipped precision of n-grams over the whole set
        rouge_l = mean over prompts of max over references of F(longest common subsequence)

    with BP the brevity penalty.

    Prompt: `e2e-overlap-1`: the row in the recipe's format, or in the task's own `format`, with no solved examples
    before it (zero-shot). Rows are those of `data.eval`, or the task's own `data`; rows with the same prompt are one
    prompt with several references, and `--limit` counts rows. At most `max_new_tokens` tokens are generated.
    Score: `bleu`, from 0 to 100, by sacreBLEU with its defaults, whose signature is among the settings; `rouge_l`, from
    0 to 1, by rouge-score without stemming; white space at both ends is dropped before. `unstopped` is the share of
    outputs that reached `max_new_tokens` without a stop token, `prompts` their number. Both libraries are the extra
    `overlap`. The scripts of the E2E challenge tokenize otherwise, so their BLEU is near this one and not the same.
    Source: Novikova et al., "The E2E Dataset", 2017, arXiv 1706.09254; Post, "A Call for Clarity in Reporting BLEU
    Scores", 2018, arXiv 1804.08771; Lin, "ROUGE", 2004.
    """

    aliases = {
        "bleu rouge sacrebleu e2e_nlg nlg dart webnlg": "tasks: [e2e]",
    }

    version = "e2e-overlap-1"
    better = {"bleu": "higher", "rouge_l": "higher", "unstopped": "lower"}

    class Config(OfRows.Config):
        max_new_tokens: int = Field(128, gt=0, description="longest answer")

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Put rows with one prompt together, generate once for each, compare with all their references."""
        overlap = find_overlap()
        rows = self.rows(subject, limit)
        renderer = self.renderer(subject)
        firsts, references = group(rows, renderer)
        answers = greedy_answers(subject, firsts, renderer, self.config.max_new_tokens, self.name)
        outputs = [answer.output.strip() for answer in answers]
        bleu, each_rouge, signature = overlap(outputs, references)
        metrics = {
            "bleu": bleu,
            "rouge_l": sum(each_rouge) / len(each_rouge),
            **share("unstopped", [not answer.stopped for answer in answers]),
            "prompts": len(answers),
        }
        samples: list[dict[str, Json]] = []
        for answer, found, rouge in zip(answers, references, each_rouge, strict=True):
            line = answer.sample(answer.output.strip() in found, rouge_l=rouge)
            samples.append({**line, "reference": found[0], "references": found})
        protocol = thinking([answer.question for answer in answers])
        return self.result(subject, rows, metrics, samples, bleu_signature=signature, **protocol)


def group(rows: Rows, renderer: Renderer) -> tuple[Rows, list[list[str]]]:
    """The first row of every prompt, and the references of all rows with it, in the order of the rows.

    Raises:
        DataError: a row without a prompt or a reference, by file and line.
    """
    questions = each(rows, renderer.question)
    places: dict[tuple[int, ...], int] = {}
    firsts: list[int] = []
    references: list[list[str]] = []
    for index, question in enumerate(questions):
        place = places.setdefault(tuple(question.prompt), len(firsts))
        if place == len(firsts):
            firsts.append(index)
            references.append([])
        references[place].append(question.reference.strip())
    return rows.chosen(firsts), references


Overlap = Callable[[Sequence[str], Sequence[Sequence[str]]], tuple[float, list[float], str]]


def find_overlap() -> Overlap:
    """What gives BLEU, ROUGE-L of every output, and the signature of BLEU, from outputs and their references.

    Raises:
        MissingExtra: a library is not installed; the message holds the install line.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise MissingExtra(
            "eval.tasks: overlap with references is measured by sacrebleu and rouge-score; install them with "
            "`pip install 'lrft[overlap]'`"
        ) from None

    def overlap(
        outputs: Sequence[str], references: Sequence[Sequence[str]]
    ) -> tuple[float, list[float], str]:
        most = max(map(len, references))
        streams = [[found[k] if k < len(found) else None for found in references] for k in range(most)]
        bleu = BLEU()
        score = float(bleu.corpus_score(list(outputs), streams).score)
        scorer = RougeScorer(["rougeL"])
        rouge = [
            float(scorer.score_multi(list(found), output)["rougeL"].fmeasure)
            for output, found in zip(outputs, references, strict=True)
        ]
        return score, rouge, str(bleu.get_signature())

    return overlap
