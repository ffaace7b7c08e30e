"""The published training pipeline (arXiv 2508.09091), written plainly from its description: what ours is held against.

Shapes: B batch, L encoder layers, S source tokens, E encoder width, T LLM positions, D LLM width, V vocabulary.

Texts are tokenised inside forward; the encoder's states of all layers are stacked twice; the Transformer Softmax is
torch's own encoder layer; rows are put together and padded in a Python loop as `[bos | soft | boundary | answer eos]`;
the LLM puts out logits at every position. It shares with layerbridge only the formulas: nothing of the package is
imported here. Three things are kinder than what was published: rows are padded on the left with position ids, so that
padding changes no result; the last layer alone is not stacked; and AdamW is torch's fused one, as ours is, so that the
optimizer is no difference.

An example (parameters are torch's; the loss is that of `Bridge.loss` to rounding):

    pipeline = PublishedPipeline("encoder-512", "llm-512", fusion="transformer_softmax")
    optimizer = pipeline.optimizer()
    loss = pipeline.step(["Premise: ... Label: "], ["Neutral"], optimizer)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, AutoModelForTextEncoding, AutoTokenizer

from benchmarks.published_fusion import PublishedTransformerSoftmax, twins

FusionName = Literal["transformer_softmax", "global_softmax_published", "last_layer"]
FUSION_NAMES: tuple[FusionName, ...] = ("transformer_softmax", "global_softmax_published", "last_layer")
IGNORED = -100
MAX_TOKENS = 200
"""Of a text, and of an answer."""


class PublishedGlobalSoftmax(nn.Module):
    """p = softmax(t w) with t = 100 + 1e5 tau over all stacked layers."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.layer_weights_lb = nn.Parameter(torch.full((num_layers,), 3e-5))
        self.temp = nn.Parameter(torch.tensor(1e-5))

    def forward(self, layers: list[Tensor], mask_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return fused states (B, S, E) and weights (B, S, L); zero at padding."""
        stacked_BSLE = torch.stack(layers, dim=2)
        weights_L = torch.softmax((100.0 + 1e5 * self.temp) * self.layer_weights_lb, dim=0)
        weights_BSL = weights_L * mask_BS.unsqueeze(-1)
        return (weights_BSL.unsqueeze(-1) * stacked_BSLE).sum(dim=2), weights_BSL


class PublishedPipeline(nn.Module):
    """Two frozen models, and fusion, projector and boundary between them.

    Args:
        encoder: folder of the encoder and its tokenizer.
        llm: folder of the LLM and its tokenizer.
        fusion: which hand-over.
        dtype: of the two models. With bfloat16 what trains stays float32 and the pass runs under autocast.
        dropout: leave the frozen encoder's dropout and the fusion's on, as published; off, nothing is random.
        device: of everything.
    """

    def __init__(
        self,
        encoder: str | Path,
        llm: str | Path,
        *,
        fusion: FusionName = "transformer_softmax",
        dtype: torch.dtype = torch.float32,
        dropout: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.encoder_tokenizer = AutoTokenizer.from_pretrained(encoder)
        self.llm_tokenizer = AutoTokenizer.from_pretrained(llm)
        self.encoder = AutoModelForTextEncoding.from_pretrained(encoder, dtype=dtype)
        self.llm = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype)
        self.encoder.requires_grad_(False)
        self.llm.requires_grad_(False)
        num_layers, width = self.encoder.config.num_hidden_layers, self.encoder.config.hidden_size
        self.fusion_name = fusion
        self.fusion: nn.Module | None = None
        if fusion == "transformer_softmax":
            self.fusion = PublishedTransformerSoftmax(num_layers, width, dropout=0.1 if dropout else 0.0)
        elif fusion == "global_softmax_published":
            self.fusion = PublishedGlobalSoftmax(num_layers)
        self.projector = nn.Linear(width, self.llm.config.hidden_size)
        self.end_boundary = nn.Parameter(torch.zeros(1, 1, self.llm.config.hidden_size))
        self.autocasts = dtype == torch.bfloat16
        self.train(dropout)
        self.to(device or torch.device("cpu"))

    def forward(self, texts: Sequence[str], answers: Sequence[str], max_source_tokens: int = MAX_TOKENS) -> Tensor:
        """Return the mean cross-entropy of the answers' tokens and their end tokens."""
        with torch.autocast(self.end_boundary.device.type, torch.bfloat16, enabled=self.autocasts):
            soft_BSD, mask_BS = self._soft_tokens(texts, max_source_tokens)
            return self._loss(soft_BSD, mask_BS, answers)

    def _soft_tokens(self, texts: Sequence[str], max_source_tokens: int) -> tuple[Tensor, Tensor]:
        read = self.encoder_tokenizer(
            list(texts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=max_source_tokens,
            return_tensors="pt",
        ).to(self.end_boundary.device)
        mask_BS = read["attention_mask"]
        with torch.no_grad():
            states = self.encoder(
                input_ids=read["input_ids"], attention_mask=mask_BS, output_hidden_states=True
            ).hidden_states[1:]
        if self.fusion is None:
            fused_BSE = states[-1]
        else:
            stacked_BLSE = torch.stack(states, dim=1)  # once here, and once more inside the fusion
            fused_BSE, _ = self.fusion(list(stacked_BLSE.unbind(dim=1)), mask_BS)
        return self.projector(fused_BSE), mask_BS

    def _loss(self, soft_BSD: Tensor, mask_BS: Tensor, answers: Sequence[str]) -> Tensor:
        embed, device = self.llm.get_input_embeddings(), soft_BSD.device
        bos_1D = embed(torch.tensor([self.llm_tokenizer.bos_token_id], device=device))
        rows, labels = [], []
        for soft_SD, mask_S, answer in zip(soft_BSD, mask_BS, answers, strict=True):
            ids = self.llm_tokenizer(answer, add_special_tokens=False)["input_ids"][: MAX_TOKENS - 1]
            answer_A = torch.tensor([*ids, self.llm_tokenizer.eos_token_id], device=device)
            row_TD = torch.cat(
                [
                    bos_1D,
                    soft_SD[mask_S.bool()].to(bos_1D.dtype),
                    self.end_boundary[0].to(bos_1D.dtype),
                    embed(answer_A),
                ]
            )
            rows.append(row_TD)
            labels.append(torch.cat([answer_A.new_full((len(row_TD) - len(answer_A),), IGNORED), answer_A]))
        lengths = [len(row_TD) for row_TD in rows]
        longest = max(lengths)
        for index, length in enumerate(lengths):
            pads_TD = rows[index].new_zeros(longest - length, rows[index].shape[1])
            rows[index] = torch.cat([pads_TD, rows[index]])
            labels[index] = torch.cat([labels[index].new_full((longest - length,), IGNORED), labels[index]])
        places_T = torch.arange(longest, device=device)
        mask_BT = torch.stack([(places_T >= longest - length).long() for length in lengths])
        logits_BTV = self.llm(
            inputs_embeds=torch.stack(rows),
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
        ).logits
        targets_BT = torch.stack(labels)
        return F.cross_entropy(
            logits_BTV[:, :-1].float().flatten(0, 1), targets_BT[:, 1:].flatten(), ignore_index=IGNORED
        )

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what trains."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the published optimizer, in torch's fused form."""
        return torch.optim.AdamW(
            self.trained_parameters(), lr=3e-5, betas=(0.8, 0.999), eps=1e-8, weight_decay=3e-7, fused=True
        )

    def step(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        optimizer: torch.optim.Optimizer,
        max_source_tokens: int = MAX_TOKENS,
    ) -> Tensor:
        """Learn from one batch and return its loss, detached."""
        optimizer.zero_grad()
        loss = self(texts, answers, max_source_tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained_parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    def by_our_names(self, *, gradients: bool = False) -> dict[str, Tensor]:
        """Return what trains, or its gradients, under the names that a layerbridge Bridge gives it."""

        def view(parameter: nn.Parameter) -> Tensor:
            return parameter.grad if gradients else parameter

        found = {
            "boundary": view(self.end_boundary)[0, 0],
            "projector.layers.weight": view(self.projector.weight),
            "projector.layers.bias": view(self.projector.bias),
        }
        if isinstance(self.fusion, PublishedTransformerSoftmax):
            found |= {f"fusion.{name}": tensor for name, tensor in twins(self.fusion, view).items()}
        elif isinstance(self.fusion, PublishedGlobalSoftmax):
            found |= {"fusion.logits_L": view(self.fusion.layer_weights_lb), "fusion.tau": view(self.fusion.temp)}
        return found

    @torch.no_grad()
    def start_like(self, trained: dict[str, nn.Parameter]) -> None:
        """Take the values of `Bridge.trained_parameters()`, all of them."""
        ours = self.by_our_names()
        assert set(ours) == set(trained), f"{set(ours) ^ set(trained)} are only in one of the two"
        for name, tensor in ours.items():
            tensor.copy_(trained[name].reshape(tensor.shape))
