//! The single-byte encodings in which text is commonly misread.
//!
//! Owns the upper halves of nine code pages and the mapping between bytes and characters. Does not
//! judge text.
//!
//! Source: the Unicode consortium's mapping tables, and `ftfy` 6.3 for the sloppy variants.

/// A single-byte encoding whose lower half is ASCII.
#[derive(Debug)]
pub(super) struct CodePage {
    /// Characters of bytes 0x80..=0xFF; U+FFFD for an unassigned byte. `None` is Latin-1.
    upper: Option<&'static str>,
    /// Whether U+FFFD is encoded as byte 0x1A. U+001A then has no byte.
    pub(super) sloppy: bool,
    /// Whether a space may stand for a lost no-break space. Not in Mac OS Roman, where a dash and a
    /// space look the same.
    pub(super) has_lost_spaces: bool,
}

/// Latin-1: byte `n` is U+00`n`.
pub(super) const LATIN_1: CodePage = CodePage { upper: None, sloppy: false, has_lost_spaces: true };
/// Windows-1252 with its five unassigned bytes read as Latin-1.
pub(super) const WINDOWS_1252: CodePage = CodePage::sloppy(UPPER_1252);

/// The encodings that a repair tries, in order.
pub(super) static CANDIDATES: [CodePage; 10] = [
    LATIN_1,
    WINDOWS_1252,
    CodePage::sloppy(UPPER_1251),
    CodePage::sloppy(UPPER_1250),
    CodePage::sloppy(UPPER_1253),
    CodePage::sloppy(UPPER_1254),
    CodePage::sloppy(UPPER_1257),
    CodePage { upper: Some(UPPER_ISO_8859_2), sloppy: false, has_lost_spaces: true },
    CodePage { upper: Some(UPPER_MACINTOSH), sloppy: false, has_lost_spaces: false },
    CodePage { upper: Some(UPPER_CP437), sloppy: false, has_lost_spaces: true },
];

/// Number of `CANDIDATES`, from the front, that resemble Latin-1: their lead bytes of UTF-8 look
/// like accented letters.
const LATIN_LIKE_COUNT: usize = 7;

const UNASSIGNED: char = '\u{fffd}';
const SUBSTITUTE: u8 = 0x1a;

impl CodePage {
    const fn sloppy(upper: &'static str) -> Self {
        Self { upper: Some(upper), sloppy: true, has_lost_spaces: true }
    }

    /// The character of a byte. An unassigned byte has its Latin-1 character.
    pub(super) fn decode_byte(&self, byte: u8) -> char {
        match self.upper {
            Some(upper) if byte >= 0x80 => {
                let c = upper.chars().nth(usize::from(byte - 0x80)).unwrap_or(UNASSIGNED);
                if c == UNASSIGNED { char::from(byte) } else { c }
            }
            _ => char::from(byte),
        }
    }

    /// Whether the strict encoding, not its sloppy variant, assigns this byte.
    pub(super) fn assigns(&self, byte: u8) -> bool {
        byte < 0x80
            || self
                .upper
                .is_none_or(|upper| upper.chars().nth(usize::from(byte - 0x80)) != Some(UNASSIGNED))
    }

    /// The byte of a character, if it has one.
    pub(super) fn encode_char(&self, c: char) -> Option<u8> {
        if self.sloppy && c == UNASSIGNED {
            return Some(SUBSTITUTE);
        }
        if c.is_ascii() {
            return u8::try_from(c).ok().filter(|&byte| !(self.sloppy && byte == SUBSTITUTE));
        }
        let Some(upper) = self.upper else {
            return u8::try_from(c).ok();
        };
        match upper.chars().position(|assigned| assigned == c && c != UNASSIGNED) {
            Some(position) => u8::try_from(position + 0x80).ok(),
            // A C1 control has its own byte if the page assigns nothing to it.
            None => u8::try_from(c).ok().filter(|&byte| self.decode_byte(byte) == c),
        }
    }

    /// Encodes text. `None` if a character has no byte.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.encode_char(c)).collect()
    }
}

/// Whether a Latin-like encoding has this character at a byte that satisfies `accept`.
///
/// It answers the question: may this be a misread lead (or continuation) byte of UTF-8?
pub(super) fn any_latin_byte(c: char, accept: impl Fn(u8) -> bool) -> bool {
    !c.is_ascii()
        && c != UNASSIGNED
        && CANDIDATES[..LATIN_LIKE_COUNT]
            .iter()
            .any(|page| page.encode_char(c).is_some_and(&accept))
}

const UPPER_1252: &str = "\
    €�‚ƒ„…†‡ˆ‰Š‹Œ�Ž�\
    �‘’“”•–—˜™š›œ�žŸ\
    \u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯\
    °±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏ\
    ÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞß\
    àáâãäåæçèéêëìíîï\
    ðñòóôõö÷øùúûüýþÿ";

const UPPER_1251: &str = "\
    ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏ\
    ђ‘’“”•–—�™љ›њќћџ\
    \u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї\
    °±Ііґµ¶·ё№є»јЅѕї\
    АБВГДЕЖЗИЙКЛМНОП\
    РСТУФХЦЧШЩЪЫЬЭЮЯ\
    абвгдежзийклмноп\
    рстуфхцчшщъыьэюя";

const UPPER_1250: &str = "\
    €�‚�„…†‡�‰Š‹ŚŤŽŹ\
    �‘’“”•–—�™š›śťžź\
    \u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż\
    °±˛ł´µ¶·¸ąş»Ľ˝ľż\
    ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎ\
    ĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢß\
    ŕáâăäĺćçčéęëěíîď\
    đńňóôőö÷řůúűüýţ˙";

const UPPER_1253: &str = "\
    €�‚ƒ„…†‡�‰�‹����\
    �‘’“”•–—�™�›����\
    \u{a0}΅Ά£¤¥¦§¨©�«¬\u{ad}®―\
    °±²³΄µ¶·ΈΉΊ»Ό½ΎΏ\
    ΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟ\
    ΠΡ�ΣΤΥΦΧΨΩΪΫάέήί\
    ΰαβγδεζηθικλμνξο\
    πρςστυφχψωϊϋόύώ�";

const UPPER_1254: &str = "\
    €�‚ƒ„…†‡ˆ‰Š‹Œ���\
    �‘’“”•–—˜™š›œ��Ÿ\
    \u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯\
    °±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏ\
    ĞÑÒÓÔÕÖ×ØÙÚÛÜİŞß\
    àáâãäåæçèéêëìíîï\
    ğñòóôõö÷øùúûüışÿ";

const UPPER_1257: &str = "\
    €�‚�„…†‡�‰�‹�¨ˇ¸\
    �‘’“”•–—�™�›�¯˛�\
    \u{a0}�¢£¤�¦§Ø©Ŗ«¬\u{ad}®Æ\
    °±²³´µ¶·ø¹ŗ»¼½¾æ\
    ĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻ\
    ŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽß\
    ąįāćäåęēčéźėģķīļ\
    šńņóōõö÷ųłśūüżž˙";

const UPPER_ISO_8859_2: &str = "\
    ����������������\
    ����������������\
    \u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ\
    °ą˛ł´ľśˇ¸šşťź˝žż\
    ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎ\
    ĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢß\
    ŕáâăäĺćçčéęëěíîď\
    đńňóôőö÷řůúűüýţ˙";

const UPPER_MACINTOSH: &str = "\
    ÄÅÇÉÑÖÜáàâäãåçéè\
    êëíìîïñóòôöõúùûü\
    †°¢£§•¶ß®©™´¨≠ÆØ\
    ∞±≤≥¥µ∂∑∏π∫ªºΩæø\
    ¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ\
    –—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ\
    ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\
    \u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";

const UPPER_CP437: &str = "\
    ÇüéâäàåçêëèïîìÄÅ\
    ÉæÆôöòûùÿÖÜ¢£¥₧ƒ\
    áíóúñÑªº¿⌐¬½¼¡«»\
    ░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧\
    ╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
    αßΓπΣσµτΦΘΩδ∞φε∩\
    ≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";
