"""The published evaluation (arXiv 2508.09091), written plainly from its description: what ours is held against.

Shapes: B batch, S source tokens, T LLM positions, D LLM width, A generated tokens.

Rows in their given order, eight at a time, padded to the longest; the greedy text of up to 512 tokens is stripped and
compared with the answer. Rows are padded on the left, which is kinder than what was published: padding changes no text.

    model = PublishedEvaluation("encoder-512", "llm-512")
    texts, num_tokens = model.write(["Premise: ... Label: "])
    model.log_probability("Premise: ... Label: ", "Neutral")  # what scoring an answer is held against
"""

from collections.abc import Sequence

import torch

from benchmarks.pair import Row
from benchmarks.published_pipeline import PublishedPipeline

BATCH_SIZE = 8
MAX_SOURCE_TOKENS = 512
MAX_NEW_TOKENS = 512


class PublishedEvaluation(PublishedPipeline):
    """The published pipeline, asked for text."""

    @torch.no_grad()
    def write(self, texts: Sequence[str], max_new_tokens: int = MAX_NEW_TOKENS) -> tuple[list[str], list[int]]:
        """Return the greedy texts of one batch, stripped, and how many tokens each has, its end token included."""
        with torch.autocast(self.end_boundary.device.type, torch.bfloat16, enabled=self.autocasts):
            soft_BSD, mask_BS = self._soft_tokens(texts, MAX_SOURCE_TOKENS)
            device = soft_BSD.device
            bos_1D = self.llm.get_input_embeddings()(torch.tensor([self.llm_tokenizer.bos_token_id], device=device))
            boundary_1D = self.end_boundary[0].to(bos_1D.dtype)
            rows = []
            for soft_SD, mask_S in zip(soft_BSD, mask_BS, strict=True):
                rows.append(torch.cat([bos_1D, soft_SD[mask_S.bool()].to(bos_1D.dtype), boundary_1D]))
            lengths = [len(row_TD) for row_TD in rows]
            longest = max(lengths)
            for index, length in enumerate(lengths):
                pads_TD = rows[index].new_zeros(longest - length, rows[index].shape[1])
                rows[index] = torch.cat([pads_TD, rows[index]])
            places_T = torch.arange(longest, device=device)
            mask_BT = torch.stack([(places_T >= longest - length).long() for length in lengths])
            ids_BA = self.llm.generate(
                inputs_embeds=torch.stack(rows),
                attention_mask=mask_BT,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.llm_tokenizer.eos_token_id,
                pad_token_id=self.llm_tokenizer.pad_token_id,
            )
        written = self.llm_tokenizer.batch_decode(ids_BA, skip_special_tokens=True)
        num_tokens = (ids_BA != self.llm_tokenizer.pad_token_id).sum(dim=1).tolist()
        return [text.strip() for text in written], num_tokens

    def write_all(self, rows: Sequence[Row], max_new_tokens: int = MAX_NEW_TOKENS) -> tuple[list[str], list[int]]:
        """Return the same of all rows."""
        written: list[str] = []
        num_tokens: list[int] = []
        for start in range(0, len(rows), BATCH_SIZE):
            texts, counts = self.write([row.text for row in rows[start : start + BATCH_SIZE]], max_new_tokens)
            written += texts
            num_tokens += counts
        return written, num_tokens

    @torch.no_grad()
    def log_probability(self, text: str, answer: str) -> float:
        """Return log p(answer, end token | text): one text and one answer alone, as one whole sequence."""
        soft_1SD, _ = self._soft_tokens([text], MAX_SOURCE_TOKENS)
        ids = self.llm_tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids_1A = torch.tensor([[*ids, self.llm_tokenizer.eos_token_id]], device=soft_1SD.device)
        embed = self.llm.get_input_embeddings()
        bos_11D = embed(torch.full_like(ids_1A[:, :1], self.llm_tokenizer.bos_token_id))
        whole_1TD = torch.cat([bos_11D, soft_1SD, self.end_boundary, embed(ids_1A)], dim=1)
        log_probs_TV = torch.log_softmax(self.llm(inputs_embeds=whole_1TD, use_cache=False).logits[0].float(), dim=-1)
        before_AV = log_probs_TV[-ids_1A.shape[1] - 1 : -1]
        return float(before_AV.gather(1, ids_1A.T).sum())
