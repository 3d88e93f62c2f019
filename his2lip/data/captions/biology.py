"""What each biomarker marks in each tissue type: the cells, their stained part, and the sources."""

from __future__ import annotations

from dataclasses import dataclass, field

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class Stain:
    """What an antibody marks.

    name      of the antigen in text
    cells     the cells that have it, as a plural
    site      their stained part
    family    of `typical.FINDINGS`
    places    tissue type -> (cells, site) where these differ
    carriers_in  tissue types whose own cells have the antigen; in others, brown has no such cells to lie on
    crowded   whether the cells can fill a field
    """

    name: str
    cells: str
    site: str
    family: str
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    carriers_in: tuple[str, ...] = ("Alveoli", "Immune cells", "Stroma", "Tumor")
    crowded: bool = True

    def carriers(self, tissue: str | None) -> tuple[str, str]:
        """The cells that have the antigen in a tissue type, and their stained part."""
        return self.places.get(tissue or "", (self.cells, self.site))

    def has_carriers(self, tissue: str | None) -> bool:
        """Whether a tissue type has such cells; True where the tissue type is unknown."""
        return tissue is None or tissue in self.carriers_in


_EPITHELIAL = ("Alveoli", "Tumor")

# Antigens and the cells that have them, where no other source is given: Dabbs D., Diagnostic
# Immunohistochemistry, 6th ed. (2021), and the Human Protein Atlas (Uhlen et al., Science 347 (2015),
# 1260419).
STAINS: dict[str, Stain] = {
    "CD3": Stain("CD3", "T lymphocytes", "membranes", "immune"),
    "CD20": Stain("CD20", "B lymphocytes", "membranes", "immune"),
    "CD38": Stain("CD38", "plasma cells", "membranes", "immune"),
    # Alveolar macrophages lie in the air spaces, on the alveolar surface (Hussell and Bell, Nat Rev Immunol
    # 14 (2014) 81-93).
    "CD68": Stain(
        "CD68", "macrophages", "granular cytoplasm", "immune",
        places={"Alveoli": ("alveolar macrophages in the air spaces", "granular cytoplasm")},
    ),
    "CD8": Stain("CD8", "cytotoxic T cells", "membranes", "immune"),
    # Regulatory T cells are 5-10 % of the CD4+ T cells of blood, and up to 20-30 % around tumours (Nishikawa
    # and Sakaguchi, Curr Opin Immunol 27 (2014) 1-7), so they are scattered and never crowded.
    "FOXP3": Stain("FOXP3", "regulatory T cells", "nuclei", "immune", crowded=False),
    "CD34": Stain(
        "CD34", "blood vessels", "endothelium", "vessel",
        places={"Alveoli": ("septal capillaries", "endothelium")},
    ),
    "CD31": Stain(
        "CD31", "blood vessels", "endothelium", "vessel",
        places={"Alveoli": ("septal capillaries", "endothelium")},
    ),
    # Podoplanin is on lymphatic endothelium and on type I pneumocytes (Breiteneder-Geleff et al., Am J Pathol
    # 154 (1999) 385-394; Williams et al., Am J Respir Cell Mol Biol 14 (1996) 577-585). Lymphatics run along
    # bronchi, vessels and interlobular septa, and the walls between alveoli have none (Schraufnagel,
    # Pathophysiology 17 (2010) 337-343).
    "D2-40": Stain(
        "D2-40", "lymphatic vessels", "endothelium", "vessel",
        places={"Alveoli": ("type I pneumocytes along the air spaces", "thin cytoplasm")},
    ),
    "FAP": Stain("FAP", "activated fibroblasts", "cytoplasm", "stromal"),
    "SMA": Stain("smooth muscle actin", "myofibroblasts and smooth muscle cells", "cytoplasm", "stromal"),
    "Ki67": Stain("Ki67", "proliferating cells", "nuclei", "nuclear"),
    "P53": Stain("p53", "cells that accumulate p53", "nuclei", "nuclear"),
    "Cyclin-D1": Stain("cyclin D1", "cells with cyclin D1", "nuclei", "nuclear"),
    "CDK4": Stain("CDK4", "cells with CDK4", "nuclei", "nuclear"),
    "ER": Stain(
        "oestrogen receptor", "hormone-sensitive cells", "nuclei", "nuclear", carriers_in=("Tumor",)
    ),
    "PR": Stain(
        "progesterone receptor", "hormone-sensitive cells", "nuclei", "nuclear", carriers_in=("Tumor",)
    ),
    "HER2": Stain("HER2", "tumour cells", "membranes", "epithelial", carriers_in=("Tumor",)),
    # Pneumocytes of both types have simple-epithelial keratins, so the lining of an alveolus is continuous
    # (Moll, Divo and Langbein, Histochem Cell Biol 129 (2008) 705-733).
    "PanCK": Stain(
        "pan-cytokeratin", "epithelial cells", "cytoplasm", "epithelial", carriers_in=_EPITHELIAL,
        places={
            "Alveoli": ("pneumocytes of the continuous alveolar lining", "cytoplasm"),
            "Tumor": ("carcinoma cells", "cytoplasm"),
        },
    ),
    "proSPC": Stain(
        "proSPC", "type II pneumocytes", "cytoplasm", "epithelial", carriers_in=_EPITHELIAL,
        places={"Tumor": ("tumour cells", "cytoplasm")},
    ),
    "Cc10": Stain("CC10", "club cells", "cytoplasm", "epithelial", carriers_in=()),
    # FHL2 is in the cytoplasm of epithelium, in nuclei of carcinoma (Al-Nomani et al., Pathol Res Pract 211
    # (2015) 171-174) and in the myofibroblasts around it (Gullotti et al., Lab Invest 91 (2011) 1695-1705).
    "FHL2": Stain(
        "FHL2", "epithelial cells", "cytoplasm", "epithelial", carriers_in=("Stroma", "Tumor"),
        places={"Stroma": ("myofibroblasts", "cytoplasm"), "Tumor": ("tumour cells", "cytoplasm and nuclei")},
    ),
    "Podocin": Stain("podocin", "podocytes", "foot processes", "epithelial", carriers_in=()),
}  # fmt: skip

UNKNOWN_STAIN = Stain("an unnamed antibody", "cells", "nuclei", "nuclear")

PLACES: dict[str | None, tuple[str, str]] = {
    "Alveoli": ("alveoli", "alveolar lung parenchyma"),
    "Background": ("slide background", "an empty slide area"),
    "Immune cells": ("an immune cell infiltrate", "a lymphoid aggregate"),
    "Necrosis": ("necrosis", "a necrotic tumour area"),
    "Other": ("other tissue", "unclassified tissue"),
    "Stroma": ("stroma", "fibrous connective tissue"),
    "Tumor": ("tumour tissue", "a carcinoma field"),
    None: ("a tissue section", "a histology field"),
}
