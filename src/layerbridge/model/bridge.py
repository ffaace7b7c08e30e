"""The bridge: frozen encoder -> fusion -> projector -> soft tokens -> frozen LLM.

Shapes: B batch, L encoder layers, S source tokens, M soft tokens of the whole batch, C their columns as a padded batch,
T LLM positions, A answer tokens (of the whole batch, where it stands first), D LLM width, V LLM vocabulary.

The LLM reads `[bos | soft tokens | boundary | text prompt | answer]` (arXiv 2508.09091; bos only where the LLM's
tokenizer has one). What trains is fusion, projector and boundary, plus adapters or biases that the config adds; that,
and nothing else, is what a checkpoint holds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from layerbridge.config import BridgeConfig
from layerbridge.errors import DataError
from layerbridge.model.bases import Base, add_lora, default_device, load_encoder_base, load_llm_base, load_llm_embedding
from layerbridge.model.classification import ClassificationMixin
from layerbridge.model.encoder import FrozenEncoder
from layerbridge.model.features import FeatureStore
from layerbridge.model.fingerprint import tensors_fingerprint
from layerbridge.model.fusion import Fused, build_fusion, matmuls_in
from layerbridge.model.generation import GenerationMixin, check_length
from layerbridge.model.last_layer import last_layer_at
from layerbridge.model.layer_weights import LayerWeightsMixin
from layerbridge.model.lazy_states import LazyStates
from layerbridge.model.packing import pack_rows, packed_logits, packs
from layerbridge.model.pooling import SoftTokens, build_pooling
from layerbridge.model.processor import BridgeInputs, BridgeProcessor
from layerbridge.model.projector import add_noise, build_projector, embedding_rms
from layerbridge.model.splice import IGNORED, Piece, splice
from layerbridge.model.states import States
from layerbridge.prompt import render_prompt


class Bridge(ClassificationMixin, LayerWeightsMixin, GenerationMixin, nn.Module):
    """Two frozen models and what is trained between them. Build with `Bridge.build`, load with `load_bridge`."""

    def __init__(
        self,
        *,
        config: BridgeConfig,
        encoder: FrozenEncoder,
        llm: PreTrainedModel,
        processor: BridgeProcessor,
        bases: Mapping[str, Mapping[str, str | None]],
    ) -> None:
        super().__init__()
        self.config = config
        self.bases = {role: dict(identity) for role, identity in bases.items()}
        self.processor = processor
        self.encoder = encoder
        self.llm = llm
        embedding = cast(nn.Embedding, llm.get_input_embeddings())
        vocabulary, width = embedding.weight.shape
        self.fusion = build_fusion(config.fusion, layer_numbers=encoder.layer_numbers, width=encoder.width)
        if encoder.model.dtype == torch.bfloat16:
            self.fusion.matmul_dtype = torch.bfloat16
        self.pool = build_pooling(config.pooling)
        needs_rms = config.projector.match_rms or config.boundary == "random"
        rms = embedding_rms(embedding, vocabulary, embedding.weight.device) if needs_rms else 1.0
        self.projector = build_projector(
            config.projector, fused_width=self.fusion.out_width, llm_width=width, embedding_rms=rms
        )
        # Drawn after fusion and projector, so that these start alike however the boundary does.
        start_D = torch.randn(width) * rms if config.boundary == "random" else torch.zeros(width)
        self.boundary = nn.Parameter(start_D)
        for part in (self.fusion, self.projector):
            part.to(embedding.weight.device)
        self.boundary.data = self.boundary.data.to(embedding.weight.device)
        self.features: FeatureStore | None = None
        """States that the encoder put out earlier; used in its stead where they have some of a batch."""
        self.recompute_states = False
        """Whether training spends encoder passes to hold fewer states (`LazyStates`)."""
        self.state_noise = 0.0
        """In training mode, of the noise on what the projector reads (`layerbridge.model.projector.add_noise`)."""
        self.trained_on: dict[str, Any] | None = None
        """What it was trained on (task, version, encoder prompt, answers, languages), once it was."""

    @classmethod
    def build(
        cls,
        config: BridgeConfig,
        *,
        device: str | torch.device | None = None,
        seed: int | None = None,
        like: "Bridge | None" = None,
        llm_elsewhere: bool = False,
    ) -> Self:
        """Load both base models and put an untrained bridge between them.

        Args:
            config: encoder, LLM, fusion, projector and prompt.
            device: for everything; by default the first GPU if there is one, else the CPU.
            seed: of the bridge's initial weights; by default torch's global state is used.
            like: an earlier bridge on the same device, whose frozen bases are taken where they are the same.
            llm_elsewhere: load of the LLM its tokenizer and input embedding alone (`load_llm_embedding`): what it reads
                can be made, and it cannot be asked.

        Raises:
            ModelError: a base that cannot be loaded or bridged.
            ConfigError: an option that does not fit the bases.
        """
        device = torch.device(device) if device is not None else default_device()
        shared = {} if like is None else like._frozen_bases(config)
        encoder_base = shared.get("encoder") or load_encoder_base(config.encoder, device)
        load_llm = load_llm_embedding if llm_elsewhere else load_llm_base
        llm_base = shared.get("llm") or load_llm(config.llm, device)
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            encoder = FrozenEncoder(encoder_base.model, config.encoder.layers)
            if config.encoder.lora is not None:  # before the biases: it freezes all but its adapters
                add_lora(encoder.model, config.encoder.lora, config.encoder.name)
            if config.encoder.train_biases:
                encoder.unfreeze_biases()
            if config.llm.lora is not None:
                add_lora(llm_base.model, config.llm.lora, config.llm.name)
            bridge = cls(
                config=config,
                encoder=encoder,
                llm=llm_base.model,
                processor=BridgeProcessor(
                    encoder_base.tokenizer, llm_base.tokenizer, config.prompt, encoder.max_tokens
                ),
                bases={"encoder": encoder_base.identity, "llm": llm_base.identity},
            )
        bridge.eval()
        return bridge

    def _frozen_bases(self, config: BridgeConfig) -> dict[str, Base]:
        """Return those of this bridge's bases that `config` asks for too, and in which nothing trains."""
        found = {}
        ours, theirs = self.config.encoder, config.encoder.model_copy(update={"layers": self.config.encoder.layers})
        if ours == theirs and ours.lora is None and not ours.train_biases:
            found["encoder"] = Base(
                model=self.encoder.model, tokenizer=self.processor.encoder_tokenizer, identity=self.bases["encoder"]
            )
        if self.config.llm == config.llm and config.llm.lora is None:
            found["llm"] = Base(model=self.llm, tokenizer=self.processor.llm_tokenizer, identity=self.bases["llm"])
        return found

    # ---------------------------------------------------------------------------------------------------------------
    # What trains

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that train, by name; exactly these are saved."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained tensors, detached, on the CPU and contiguous."""
        return {name: p.detach().cpu().contiguous() for name, p in self.trained_parameters().items()}

    def fingerprint(self) -> str:
        """Return the sha256 hex digest of the trained tensors, the config and the bases' fingerprints.

        Where the bases lie does not enter: the same bridge has the same fingerprint on every machine.
        """
        places = {role: {"name", "revision", "trust_remote_code"} for role in ("encoder", "llm")}
        config = self.config.model_dump_json(exclude=places, exclude_defaults=True)  # stable when options are added
        names = [self.config.fusion.name, self.config.projector.name]  # defaults of their own kinds, so not in there
        prints = [base["fingerprint"] for _, base in sorted(self.bases.items())]
        return tensors_fingerprint(self.trained_state(), extra=f"{names} {config} {prints}")

    def train(self, mode: bool = True) -> Self:
        """Switch fusion and projector to training; both base models stay in eval mode, dropout off."""
        super().train(mode)
        self.llm.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the bridge is."""
        return self.boundary.device

    # ---------------------------------------------------------------------------------------------------------------
    # Forward

    def encode(self, inputs: BridgeInputs) -> States:
        """Return the encoder's states of a batch, from the feature store where it has them."""

        def read(source_ids_BS: Tensor, source_mask_BS: Tensor) -> States:
            return LazyStates(self.encoder, source_ids_BS, source_mask_BS, recompute=self.recompute_states)

        if self.features is None:
            return read(inputs.source_ids, inputs.source_mask)
        return self.features.states(inputs.source_ids, inputs.source_mask, read)

    def fuse(self, inputs: BridgeInputs) -> Fused:
        """Return the fused encoder states (B, S, E) and each token's layer weights (B, S, L), before any pooling."""
        states = self.encode(inputs)
        return Fused(*(states.pad(part) for part in self.fusion.mix(states)))

    def soft_tokens(self, inputs: BridgeInputs) -> SoftTokens:
        """Return what stands for the batch's texts in the LLM (M, D), in its dtype, and where each of them stands."""
        states = self.encode(inputs)
        pooled = self.pool(self.fusion.mix(states).states_NE, states, inputs.source_mask)
        if self.training and self.state_noise:
            pooled = pooled.of(add_noise(pooled.tokens_MX, self.state_noise))
        dtype = self._embedding.weight.dtype
        with matmuls_in(dtype if dtype == torch.bfloat16 else None, pooled.tokens_MX.device):
            soft_MD = self.projector(pooled.tokens_MX)
        return pooled.of(soft_MD.to(dtype))

    def prefix_pieces(self, inputs: BridgeInputs) -> list[Piece]:
        """Return `bos | soft tokens | boundary | text prompt`, each with its mask."""
        soft, boundary = self.soft_pieces(inputs)
        pieces = [soft, boundary, Piece(self.embed(inputs.prompt_ids), inputs.prompt_mask)]
        bos = self.processor.llm_tokenizer.bos_token_id
        if bos is not None:
            always = boundary.mask_BT
            pieces.insert(0, Piece(self.embed(torch.full_like(always, bos, dtype=torch.long)), always))
        return pieces

    def soft_pieces(self, inputs: BridgeInputs) -> tuple[Piece, Piece]:
        """Return soft tokens and boundary: what of the prefix is no text."""
        soft = self.soft_tokens(inputs)
        soft_BCD = soft.pad()
        batch = soft_BCD.shape[0]
        always = torch.ones((batch, 1), dtype=torch.bool, device=soft_BCD.device)
        boundary = Piece(self.boundary.to(soft_BCD.dtype).expand(batch, 1, -1), always)
        return Piece(soft_BCD, soft.mask_BC), boundary

    @property
    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.llm.get_input_embeddings())

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return the LLM's own input embeddings of token ids, scaled as its embedding module scales them."""
        return cast(Tensor, self._embedding(ids_BT))

    def loss(self, inputs: BridgeInputs, num_items: Tensor | int | None = None) -> Tensor:
        """Return the cross-entropy of the answers and their end tokens.

        Args:
            inputs: with labels.
            num_items: answer tokens to divide the sum by; by default those of this batch (the mean).
        """
        logits_AV, targets_A = self.answer_logits(inputs)
        total = F.cross_entropy(logits_AV.float(), targets_A, reduction="sum")
        return total / (num_items if num_items is not None else len(targets_A))

    def answer_logits(self, inputs: BridgeInputs) -> tuple[Tensor, Tensor]:
        """Return the logits (A, V) that predict the answers' tokens and end tokens, row by row, and these tokens (A,).

        Raises:
            DataError: no answers, or none with a token.
        """
        if inputs.labels is None:
            raise DataError("This batch has no answers to learn from; give the processor `answers`.")
        labels_BA = inputs.labels
        logits_AV, targets_A = (self._packed_logits if packs(self.llm) else self._padded_logits)(inputs, labels_BA)
        if not len(targets_A):
            raise DataError("No row of this batch has an answer token to learn from; give it at least one answer.")
        return logits_AV, targets_A

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Return `{"loss": ...}` of a batch given as keyword tensors: what trainers call."""
        num_items = batch.pop("num_items_in_batch", None)
        return {"loss": self.loss(BridgeInputs(**batch), num_items)}

    def _packed_logits(self, inputs: BridgeInputs, labels_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Return the answer tokens' logits and ids, the rows read one after another without padding."""
        soft = self.soft_tokens(inputs)
        bos = self.processor.llm_tokenizer.bos_token_id
        rows = pack_rows(soft.mask_BC, inputs.prompt_ids, inputs.prompt_mask, labels_BA, bos_id=bos)
        check_length(self.llm, rows.layout.packed_BS.shape[1])
        embeds_TD = rows.fill(self.embed(rows.ids_T), soft.tokens_MX, soft.rows_M, self.boundary)
        return packed_logits(self.llm, embeds_TD, rows.layout, rows.before_answers_A), rows.answers_A

    def _padded_logits(self, inputs: BridgeInputs, labels_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same from a padded batch, for LLMs that read no other."""
        answer = Piece(self.embed(labels_BA.clamp(min=0)), labels_BA != IGNORED, labels_BA)
        spliced = splice([*self.prefix_pieces(inputs), answer])
        length, longest = spliced.mask_BT.shape[1], labels_BA.shape[1]
        check_length(self.llm, length)
        places = torch.arange(length - longest - 1, length - 1, device=self.device)
        with last_layer_at(self.llm, places, length):
            logits_BAV = self.llm(
                inputs_embeds=spliced.embeds_BTD,
                attention_mask=spliced.mask_BT.long(),
                position_ids=spliced.position_ids_BT,
                logits_to_keep=places,
                use_cache=False,
            ).logits
        targets_BA = spliced.labels_BT[:, -longest:]
        learned_BA = targets_BA != IGNORED
        return logits_BAV[learned_BA], targets_BA[learned_BA]

    # ---------------------------------------------------------------------------------------------------------------
    # For people

    def source_limit(self, max_source_tokens: int) -> int:
        """Return the limit on encoder tokens that holds: the asked one, or the encoder's own if that is lower."""
        return self.processor.source_limit(max_source_tokens)

    def count_source_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many encoder tokens each text has before any cut."""
        return self.processor.count_source_tokens(texts)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a checkpoint folder (`layerbridge.model.checkpoint.save_bridge`); `layerbridge.load` reads it."""
        from layerbridge.model.checkpoint import save_bridge

        return save_bridge(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Put the checkpoint with its model card on the Hugging Face hub and return its address."""
        from layerbridge.model.checkpoint import push_to_hub

        return push_to_hub(self, repo_id, private=private, token=token)

    def render(self, fields: str | Mapping[str, str]) -> str:
        """Return what the encoder reads for an input of the task that this bridge was trained on.

        Args:
            fields: the task's fields by name; or one text, where the task has one field. Without a task, the text.

        Raises:
            DataError: a field is missing or empty, or one text where the prompt has several fields.
        """
        template = (self.trained_on or {}).get("encoder_prompt")
        if template is not None:
            return render_prompt(template, fields)
        if isinstance(fields, str):
            return fields
        raise DataError("This bridge was trained on no task, so it has no named fields; give one text.")
