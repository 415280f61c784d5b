import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.security.KeyStore;

/** Stores a keystore again with an empty password: `two` zero bytes long in the format, or `zero`. */
public class Empty {
    public static void main(String[] args) throws Exception {
        char[] old = args[1].toCharArray();
        char[] none = args[3].equals("zero") ? new char[] {0} : new char[0];
        KeyStore in = KeyStore.getInstance("PKCS12");
        try (FileInputStream file = new FileInputStream(args[0])) {
            in.load(file, old);
        }
        KeyStore out = KeyStore.getInstance("PKCS12");
        out.load(null, null);
        String alias = in.aliases().nextElement();
        out.setKeyEntry(alias, in.getKey(alias, old), none, in.getCertificateChain(alias));
        try (FileOutputStream file = new FileOutputStream(args[2])) {
            out.store(file, none);
        }
    }
}
