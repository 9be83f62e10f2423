"""What eight posters must say, and what goes wrong on each. Texts are ours.

A brief's lines are in reading order: a Chinese headline, an English line, a mixed line with
figures, a footer. Its faults are written by hand, so that a wrong character is one that a model
would draw (a look-alike) and not a random one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Brief:
    name: str
    prompt: str
    """As a user would write it, the texts in straight quotes."""
    lines: tuple[str, str, str, str]
    """Headline, English, mixed, footer."""
    wrong: tuple[str, str, str]
    """The headline with one, two and three wrong characters; each holds the one before."""
    garbled: tuple[str, str, str]
    """The English line with one wrong letter, several, and hardly a right one."""
    wrong_price: str
    """The mixed line with one wrong figure."""
    fonts: tuple[str, str, str, str]
    """Keys of `benchmarks.text.draw.FONTS`, one a line."""
    colours: tuple[str, str]
    """Background and ink."""


JUNK = ("囗冖丿乂罒彡", "Lorm ipsu dolr", "亻彐匚乁乚")
"""Lines that nobody asked for."""

SANS, SERIF = "sans", "serif"
BOLD, HEAVY = "sans-bold", "serif-bold"
LATIN, LATIN_SERIF, LATIN_BOLD = "latin", "latin-serif", "latin-bold"

BRIEFS = (
    Brief(
        "spring",
        'A New Year poster with "春节快乐", "Happy New Year", "全场五折 Sale 50% OFF" and the '
        'footer "活动截至二月十五日"',
        ("春节快乐", "Happy New Year", "全场五折 Sale 50% OFF", "活动截至二月十五日"),
        ("春节决乐", "舂节决乐", "舂节决东"),
        ("Hapqy New Year", "Hapqy Nev Yaer", "Hqgqv Nvv Yxxr"),
        "全场五折 Sale 30% OFF",
        (BOLD, LATIN_BOLD, SANS, SANS),
        ("#b3202a", "#fff2d0"),
    ),
    Brief(
        "coffee",
        'A café banner with "手冲咖啡", "Slow Morning Coffee", "拿铁 Latte ¥28 起" and '
        '"每日清晨七点开门"',
        ("手冲咖啡", "Slow Morning Coffee", "拿铁 Latte ¥28 起", "每日清晨七点开门"),
        ("手冲加啡", "毛冲加啡", "毛冲加非"),
        ("Slow Morninq Coffee", "Slwo Morninq Coftee", "Sluv Mxrnlq Cqftxe"),
        "拿铁 Latte ¥82 起",
        (HEAVY, LATIN_SERIF, SERIF, SERIF),
        ("#f4ead9", "#3a2416"),
    ),
    Brief(
        "tech",
        'A launch poster with "智能未来", "Think Beyond Limits", "新品 Model X9 首发 3999 元" and '
        '"官方商城同步预售"',
        ("智能未来", "Think Beyond Limits", "新品 Model X9 首发 3999 元", "官方商城同步预售"),
        ("智能末来", "知能末来", "知能末米"),
        ("Think Beyund Limits", "Thnik Beyund Limlts", "Tkmk Bxvnud Lmwlz"),
        "新品 Model X9 首发 8999 元",
        (BOLD, LATIN, SANS, SANS),
        ("#0d1b2e", "#e8f3ff"),
    ),
    Brief(
        "tea",
        'A tea label with "明前龙井", "West Lake Green Tea", "礼盒 250g 售价 ¥168" and '
        '"产自杭州西湖产区"',
        ("明前龙井", "West Lake Green Tea", "礼盒 250g 售价 ¥168", "产自杭州西湖产区"),
        ("朋前龙井", "朋剪龙井", "朋剪尤井"),
        ("West Lake Grean Tea", "Wset Loke Grean Tea", "Wzst Lqkx Gmnen Txa"),
        "礼盒 250g 售价 ¥186",
        (HEAVY, LATIN_SERIF, SANS, SERIF),
        ("#eef3e4", "#1f4a2c"),
    ),
    Brief(
        "marathon",
        'A race poster with "城市马拉松", "Run The City", "全程 42km 报名费 ¥120" and '
        '"十月二十日鸣枪起跑"',
        ("城市马拉松", "Run The City", "全程 42km 报名费 ¥120", "十月二十日鸣枪起跑"),
        ("城市鸟拉松", "成市鸟拉松", "成市鸟立松"),
        ("Run The Cify", "Rnu Tha Cify", "Rxw Tqx Czfv"),
        "全程 42km 报名费 ¥720",
        (BOLD, LATIN_BOLD, BOLD, SANS),
        ("#ffd23f", "#1b1b1b"),
    ),
    Brief(
        "bookshop",
        'A bookshop card with "纸上时光", "Read A Little More", "会员 8 折 Members Save 20%" and '
        '"地址南京路六十号"',
        ("纸上时光", "Read A Little More", "会员 8 折 Members Save 20%", "地址南京路六十号"),
        ("低上时光", "低土时光", "低土吋光"),
        ("Read A Litfle More", "Raed A Litfle Nore", "Rxqd A Lzffk Nvro"),
        "会员 8 折 Members Save 70%",
        (SERIF, LATIN, SANS, SERIF),
        ("#d9e4ea", "#22303c"),
    ),
    Brief(
        "travel",
        'A travel banner with "海岛假期", "Summer On The Island", "双人游 Two For 2680 元" and '
        '"咨询热线周一至周日"',
        ("海岛假期", "Summer On The Island", "双人游 Two For 2680 元", "咨询热线周一至周日"),
        ("海鸟假期", "海鸟暇期", "梅鸟暇期"),
        ("Summer On The lsIand", "Sumner Om The Islamd", "Snwnev Qm Thx Izkqmd"),
        "双人游 Two For 2860 元",
        (BOLD, LATIN_SERIF, SANS, SANS),
        ("#0f7c8a", "#ffffff"),
    ),
    Brief(
        "concert",
        'A concert bill with "星夜音乐会", "Under The Stars", "门票 VIP 880 元起" and '
        '"演出前请关闭手机"',
        ("星夜音乐会", "Under The Stars", "门票 VIP 880 元起", "演出前请关闭手机"),
        ("星液音乐会", "皇液音乐会", "皇液音乐合"),
        ("Under The Sfars", "Undor Tha Sfars", "Uxdqr Tkx Sfmvz"),
        "门票 VIP 380 元起",
        (HEAVY, LATIN_BOLD, SANS, SANS),
        ("#241a3a", "#f6d98b"),
    ),
)
